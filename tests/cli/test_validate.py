"""`heretic validate RUN`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import tiny

from heretic.main import main
from heretic.pipeline import validate as module
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs

CONFIG = """
model = "model"
n_trials = 2
search = "tpe"
seed = 7
dtypes = ["float32"]
max_response_length = 4
response_prefix = ""
refusal_markers = ["", "x"]
scorers = [{ plugin = "keyword", name = "refusals" }, { plugin = "kl_divergence" }]
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run that has been searched."""
    place = tmp_path_factory.mktemp("validate")
    tiny.folder(place / "model")
    tiny.prompt_files(place)
    (place / "topic.txt").write_text("Where is the moon?\nWhen is it full?\nWho saw it?\n")
    (place / "config.toml").write_text(CONFIG + tiny.PROMPT_TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([]) == 0
    return place


@pytest.fixture
def run(searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command there; returns the exit status, what was printed, and what went wrong."""
    monkeypatch.chdir(searched)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def folder_in(place: Path) -> RunFolder:
    (row,) = list_runs(place / "checkpoints")
    return RunFolder(row.path)


TOPIC = ("--topic-prompts.dataset", "topic.txt")


def test_a_table_and_one_sentence_at_80_columns(run: Run) -> None:
    status, told, _ = run("validate", "1", "--draws", "2", *TOPIC)
    assert status == 0
    table = told[told.index("and its controls") :]
    assert all(len(line) <= 80 for line in table.splitlines())
    for name in (
        "original",
        "chosen plan",
        "shuffled labels 2",
        "random rotation 2",
        "topic alone",
    ):
        assert name in table
    assert "refusals" in table
    assert "KL divergence" in " ".join(table.split())
    assert " ".join(told.split()).endswith(
        "The chosen plan leaves 4 of 4 refusals, the original 4: the difference may be chance, so "
        "nothing follows."
    )


def test_as_json(run: Run, searched: Path) -> None:
    status, told, _ = run("validate", "1", "--draws", "1", "--json", "--trial-index", "0")
    assert status == 0
    data = json.loads(told)
    assert set(data) == {"trial", "baseline", "controls", "left_out", "conclusion"}
    assert [row["kind"] for row in data["controls"]] == ["chosen", "shuffled", "random"]
    assert set(data["controls"][0]) == {"kind", "draw", "scores", "shows"}
    (trial,) = [t for t in folder_in(searched).read_trials() if t.number == data["trial"]]
    chosen = data["controls"][0]["scores"]
    assert {name: row["value"] for name, row in chosen.items()} == {
        score.name: score.value for score in trial.scores
    }
    assert data["left_out"] == ["topic: topic_prompts is not set"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("validate", "1", "--trial-index", "99"), "the front has the rows 0 to"),
        (("validate", "1", "--trial-index", "best"), "--trial-index"),
        (("validate", "9"), "9"),
        (("validate", "nowhere"), "nowhere"),
        (("validate", "1", "--draws", "0"), "--draws"),
        (("validate", "1", "--topic-prompts.dataset", "none.txt"), "none.txt"),
    ],
)
def test_mistakes_are_said_before_the_model_loads(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model is not loaded for this")

    monkeypatch.setattr("heretic.pipeline.run.model_of_run", never)
    status, _, error = run(*options)
    assert status == 2
    assert error.startswith("Error: ")
    assert said in error


def test_an_interruption_says_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_measured", interrupted)
    status, told, _ = run("validate", "1", "--trial-index", "0", "--draws", "9")
    assert status == 130
    assert "Finished controls are kept" in told


@pytest.mark.parametrize("left", [0, 100])
def test_directions_that_are_gone_or_damaged_are_computed_again(
    run: Run, searched: Path, left: int
) -> None:
    before = run("validate", "1", "--draws", "1", "--json")[1]
    path = folder_in(searched).path / "directions.safetensors"
    content = path.read_bytes()
    if left:
        path.write_bytes(content[:left])
    else:
        path.unlink()
    status, told, _ = run("validate", "1", "--draws", "1", "--json")
    assert (status, json.loads(told)) == (0, json.loads(before))
    assert path.read_bytes() == content
