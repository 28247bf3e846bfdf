"""`heretic migrate`, and files of heretic-llm where other commands read settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomlkit
from tests.support.foreign import FILES, document

from heretic.config import load_settings
from heretic.main import main

KEYS = FILES["config.default.toml, 2.x (a copy of master, 66612f86)"]


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of theirs in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = Path("theirs.toml")
    file.write_text(tomlkit.dumps({**document(*KEYS), "trust_remote_code": True}))
    return file


def test_toml_goes_to_the_output_and_all_else_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["migrate", "theirs.toml"]) == 0
    found = capsys.readouterr()
    Path("ours.toml").write_text(found.out)
    assert load_settings({"model": "m"}, Path("ours.toml")).n_trials == 7
    assert "trust_remote_code" not in tomllib.loads(found.out)
    for said in (
        "theirs.toml holds settings of heretic-llm 2.x, another project",
        "scorer.KeywordRate.prompts -> bad_evaluation_prompts",
        "Left out:\n",
        "Not carried over: only you can allow it:\n  trust_remote_code\n",
    ):
        assert said in found.err
    assert max(map(len, found.err.splitlines())) <= 80


def test_a_file_is_written_and_never_replaced_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "theirs.toml", "-o", "ours.toml"]) == 0
    written = Path("ours.toml").read_text()
    assert capsys.readouterr().out == ""
    for file in ("ours.toml", "theirs.toml"):
        before = Path(file).read_text()
        assert main(["migrate", "theirs.toml", "-o", file]) == 2
        assert f"{file} exists." in capsys.readouterr().err
        assert Path(file).read_text() == before
    assert main(["migrate", "theirs.toml", "-o", "ours.toml", "--overwrite"]) == 0
    assert Path("ours.toml").read_text() == written


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("trust_remote_code = true\n", 2),
        ("nonsense = 1\n", 2),
        ("", 2),
        ("nonsense = 1\nn_trials = 3\n", 0),
        ("not toml", 2),
    ],
)
def test_the_status_is_2_only_if_nothing_is_taken(text: str, status: int) -> None:
    Path("theirs.toml").write_text(text)
    assert main(["migrate", "theirs.toml", "-o", "ours.toml"]) == status
    assert Path("ours.toml").exists() == (status == 0)


def test_keywords_as_they_were_are_said_to_set_the_scorers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("theirs.toml").write_text(
        'print_responses = false\noffload_outputs_to_cpu = true\nrefusal_markers = ["sorry"]\n'
    )
    assert main(["migrate", "theirs.toml"]) == 0
    found = capsys.readouterr()
    assert 'plugin = "keyword"' in found.out
    said = " ".join(found.err.split())
    assert "1 of 3 keys taken, 1 left out, 1 not needed." in said
    assert "refusal_markers Replies are counted by these texts, so the scorers are" in said


def test_the_folder_of_the_file_is_made(theirs: Path) -> None:
    assert main(["migrate", str(theirs), "-o", "new/folder/ours.toml"]) == 0
    assert Path("new/folder/ours.toml").is_file()


def test_every_command_reads_such_a_file_and_says_so_once(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, options in ((theirs, ["--config", "theirs.toml"]), (Path("config.toml"), [])):
        place.write_text(theirs.read_text())
        assert main(["runs", *options]) == 0
        found = capsys.readouterr()
        assert "There are no runs in runs." in found.out  # study_checkpoint_dir, as it was
        assert found.err.count("another project") == 1
        assert "trust_remote_code is left out" in found.err
