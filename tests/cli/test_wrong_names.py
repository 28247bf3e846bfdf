"""Names of models, runs and files that are not there: told in a line, and before slow imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import run_case
from tests.support.search_case import measure

from heretic.cli.commands.export import check_rows
from heretic.config import Settings
from heretic.errors import RunError, SettingsError
from heretic.main import main
from heretic.records.trial import Trial

OFFLINE = "is not on this machine and the Hub cannot be reached"

MODELS = {
    "nothere": OFFLINE,
    "org/nothere": OFFLINE,
    "./nothere": "There is no folder ./nothere. Check the path",
    "a name": "There is no folder a name, and nothing on the Hub can have that name.",
    "notes.txt": "notes.txt is a file, and not a GGUF file.",
    "empty": "empty is a folder here that holds no model (no config.json)",
    "notes.gguf": "notes.gguf is not a GGUF file.",
    "./none.gguf": "There is no file none.gguf.",
}
"""Names of models, and what is said of them."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of wrong kinds, a model's configuration, and a run."""
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "notes.gguf"):
        Path(name).write_text("hello")
    Path("broken.json").write_text('{"rank": 1}')
    Path("empty").mkdir()
    for name in ("model", "saved"):
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
    Path("saved/abliteration_params.json").write_text("{}")
    run_case.make_run(Path("checkpoints/run"))
    return tmp_path


def told(lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Status, standard error, and slow modules loaded so far, of commands in one process."""
    program = """
import contextlib, io, json, sys
from heretic.main import main
found = []
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(line)
    slow = {"accelerate", "torch", "transformers"} & set(sys.modules)
    found.append((status, " ".join(said.getvalue().split()), " ".join(sorted(slow))))
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(status, text, slow) for status, text, slow in json.loads(done.stdout)]


def check(said: dict[str, list[str]] | list[tuple[str, list[str]]]) -> None:
    pairs = list(said.items()) if isinstance(said, dict) else said
    for (wanted, line), (status, text, slow) in zip(
        pairs, told([line for _, line in pairs]), strict=True
    ):
        assert status == 2, line
        assert wanted in text, (line, text)
        assert text.count("Error:") == 1
        assert not slow, (line, slow)


@pytest.mark.usefixtures("place")
def test_a_model_that_is_not_there_is_told_before_slow_imports():
    lines = []
    for name, wanted in MODELS.items():
        lines += [(wanted, ["run", name]), (wanted, ["inspect", name]), (wanted, ["chat", name])]
        lines += [(wanted, ["apply", name, "broken.json"])]
        lines += [(wanted, ["evaluate", name, "--against", "model"])]
        lines += [(wanted, ["evaluate", "model", "--against", name])]
        if name != "empty":  # its weights alone could be compared
            lines += [(wanted, ["compare", name, "model"]), (wanted, ["compare", "model", name])]
    check(lines)


@pytest.mark.usefixtures("place")
def test_a_file_or_folder_that_is_not_there_is_told_before_slow_imports():
    saved = "Name the folder of a saved model"
    check({
        "none.json does not exist.": ["apply", "model", "none.json"],
        "notes.txt is not valid JSON": ["apply", "model", "notes.txt"],
        "broken.json: Not a plan: ": ["apply", "model", "broken.json"],
        "saved is a folder, not a file with a plan. Name the file in it: "
        "saved/abliteration_params.json.": ["apply", "model", "saved"],
        "empty is a folder, not a file with a plan. Name a run's front.json": [
            "apply", "model", "empty"
        ],
        "none is not a folder. Name that of a saved model": ["gguf", "none"],
        f"empty holds no safetensors files. {saved}": ["gguf", "empty"],
        "checkpoints/run is a run folder, not a saved model. Save one of its trials first: "
        "heretic export checkpoints/run": ["gguf", "checkpoints/run"],
        "checkpoints/run is a run folder, not a saved model.": ["audit", "checkpoints/run"],
        "empty holds no reproduce.json": ["audit", "empty"],
        f"none does not exist. {saved}, or its reproduce.json.": ["reproduce", "none"],
        "empty/reproduce.json does not exist.": ["reproduce", "empty"],
        "none does not exist.": ["migrate", "none"],
        "empty is a folder. Name the file in it": ["migrate", "empty"],
    })  # fmt: skip


@pytest.mark.usefixtures("place")
def test_a_run_that_is_not_there_is_told_before_slow_imports():
    for name in ("none", "notes.txt", "empty", "broken.json"):
        wanted = f"{name} is not a run folder. `heretic runs` lists run folders."
        commands = (["report"], ["look", "words"], ["export"], ["validate"], ["benchmark"])
        check([(wanted, [line[0], name, *line[1:]]) for line in commands])


@pytest.mark.usefixtures("place")
def test_a_number_that_no_run_has_is_told_in_words(capsys: pytest.CaptureFixture[str]):
    only = "There is no run 99 in checkpoints: the only number there is 1."
    for line in (["report", "99"], ["chat", "99"], ["look", "99", "words"], ["export", "99"]):
        assert main(line) == 2
        assert only in capsys.readouterr().err
    Path("checkpoints").rename("elsewhere")
    for line in (["report", "99"], ["chat", "99"], ["look", "99", "words"], ["export", "99"]):
        assert main(line) == 2
        assert "There is no run 99: there are no runs in checkpoints. Go to" in (
            capsys.readouterr().err
        )
    Path("checkpoints/bad").mkdir(parents=True)
    Path("checkpoints/bad/manifest.json").write_text("{")
    assert main(["report", "99"]) == 2
    assert "none has a number, and 1 run cannot be read." in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_a_trial_of_what_is_no_run_is_refused(capsys: pytest.CaptureFixture[str]):
    for name in ("model", "./none.gguf", "http://127.0.0.1:1/v1"):
        assert main(["chat", name, "--trial-index", "0"]) == 2
        assert f"a trial of a run, and {name} is not a run." in capsys.readouterr().err


def test_an_export_without_such_a_trial_is_refused_before_a_model_is_loaded():
    def settings(**more: Any) -> Settings:
        return Settings.restore({"model": "m", **more})

    plan = run_case.SWEEP[0]
    trials = [Trial(number=0, plan=plan, scores=measure(plan))]
    check_rows(trials, settings())
    check_rows(trials, settings(trial_index=0))
    check_rows([], settings(n_additional_trials=2, trial_index=0))
    with pytest.raises(SettingsError, match="trial_index is 99, but the front has the rows 0 to"):
        check_rows(trials, settings(trial_index=99))
    with pytest.raises(SettingsError, match="no trial has completed yet"):
        check_rows([], settings(trial_index="knee"))
    with pytest.raises(RunError, match=r"No trial of this run has completed yet\. Go on"):
        check_rows([], settings())


@pytest.mark.usefixtures("place")
def test_an_option_of_one_letter_gets_no_suggestion(capsys: pytest.CaptureFixture[str]):
    assert main(["look", "checkpoints/run", "words", "-o", "x"]) == 2
    assert "Unknown option -o. `heretic look --help` lists" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_the_folder_of_a_page_is_made(capsys: pytest.CaptureFixture[str]):
    assert main(["report", "checkpoints/run", "-o", "new/folder/page.html"]) == 0
    assert Path("new/folder/page.html").is_file()
    for line in (
        ["report", "checkpoints/run", "-o", "notes.txt/page.html"],
        ["look", "checkpoints/run", "tokens", "Hi", "--html", "notes.txt/page.html"],
        ["look", "checkpoints/run", "words", "--pictures", "notes.txt/pictures"],
    ):
        assert main(line) == 2
        assert "Cannot write notes.txt" in capsys.readouterr().err
