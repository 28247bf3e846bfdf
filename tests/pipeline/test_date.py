"""A template that asks for the time is told the run's date, in every process and on every day."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny

from heretic.main import main
from heretic.model import templates
from heretic.model.core import Model
from heretic.records import Score
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs

TEMPLATE = "[{{ strftime_now('%d %B %Y, %H:%M') }}]" + tiny.CHAT_TEMPLATE
LATER = datetime(2031, 2, 3, 4, 5, 6)
SAVE = ["--model-action", "save", "--trial-index", "0", "--export-strategy", "merge"]
CONTINUE = ["--checkpoint-action", "continue", "--model-action", "none"]
CONFIG = """
model = "model"
n_trials = 3
n_startup_trials = 3
search = "tpe"
force = true
seed = 7
dtypes = ["float32"]
max_response_length = 6
response_prefix = ""
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory after a search."""
    place = tmp_path_factory.mktemp("searched")
    tiny.folder(place / "model", chat_template=TEMPLATE)
    tiny.prompt_files(place)
    (place / "config.toml").write_text(CONFIG + tiny.PROMPT_TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([]) == 0
    return place


@pytest.fixture
def run(searched: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """That run, years later."""
    monkeypatch.chdir(searched)
    pass_years(monkeypatch)
    (found,) = list_runs(Path("checkpoints"))
    return RunFolder(found.path)


def pass_years(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return LATER

    monkeypatch.setattr(templates, "datetime", Later)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The dates in the prompts of everything that a test computes."""
    seen: set[str] = set()
    encode: Callable[..., list[list[int]]] = Model.encode_rows

    def watched(model: Model, prompts: list[str], *more: Any) -> list[list[int]]:
        seen.update(model.prompt_text(prompt).partition("]")[0] for prompt in prompts)
        return encode(model, prompts, *more)

    monkeypatch.setattr(Model, "encode_rows", watched)
    return seen


def date_of(run: RunFolder) -> str:
    return f"[{datetime.fromisoformat(run.require_manifest().found['date']):%d %B %Y, %H:%M}"


def without_first(seen: set[str]) -> set[str]:
    """Less what is computed while a model loads, when no run's date is known: padding is tried."""
    return seen - {f"[{LATER:%d %B %Y, %H:%M}"}


def test_a_resumed_run_goes_on_with_its_date(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    before = run.baseline_path.read_bytes()
    assert (
        main(["--n-trials", "4", "--checkpoint-action", "continue", "--model-action", "none"]) == 0
    )
    assert run.baseline_path.read_bytes() == before
    assert "not now" not in capsys.readouterr().out


def test_what_is_saved_is_checked_reproduced_and_evaluated_with_that_date(
    run: RunFolder, rendered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    edited, again = str(tmp_path / "edited"), str(tmp_path / "again")
    assert main(["export", str(run.path), *SAVE, "--save-directory", edited]) == 0
    file = Path(edited) / "reproduce.json"
    assert json.loads(file.read_text())["found"]["date"] == run.require_manifest().found["date"]
    assert main(["reproduce", edited, "--save-directory", again]) == 0
    capsys.readouterr()
    assert main(["evaluate", edited, "--against", "model", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["baseline"]
    recorded = [Score.from_dict(row) for row in run.require_manifest().found["baseline"]]
    assert {name: row["display"] for name, row in measured.items()} == {
        score.name: score.display for score in recorded
    }
    assert without_first(rendered) == {date_of(run)}


def test_a_plan_is_applied_with_the_date_that_it_was_found_with(
    run: RunFolder, rendered: set[str], tmp_path: Path
):
    edited, again = tmp_path / "edited", tmp_path / "again"
    assert main(["export", str(run.path), *SAVE, "--save-directory", str(edited)]) == 0
    rendered.clear()
    plan = str(edited / "abliteration_params.json")
    assert main(["apply", "model", plan, "--save-directory", str(again)]) == 0
    assert without_first(rendered) == {date_of(run)}
    assert (again / "model.safetensors").read_bytes() == (edited / "model.safetensors").read_bytes()


@pytest.fixture
def with_manifest(run: RunFolder) -> Iterator[Callable[..., None]]:
    """Changes the values found by the run, and other fields of its manifest, for one test."""
    manifest = run.require_manifest()

    def write(found: dict[str, Any], **fields: Any) -> None:
        run.write_manifest(replace(manifest, found=found, **fields))

    yield write
    run.write_manifest(manifest)


def test_a_run_from_before_goes_on_with_its_first_day(
    run: RunFolder, rendered: set[str], with_manifest: Callable[..., None]
):
    found = {k: value for k, value in run.require_manifest().found.items() if k != "date"}
    created = datetime(2024, 5, 6, 7, 8).astimezone(timezone(timedelta(hours=9)))
    with_manifest(found, created=created.isoformat())
    assert main([*CONTINUE, "--n-trials", "5"]) == 0
    assert without_first(rendered) == {"[06 May 2024, 07:08"}


def test_a_different_prompt_makes_a_different_baseline(
    run: RunFolder, with_manifest: Callable[..., None]
):
    """Whatever else changes what the model reads is seen, too: rendered prompts are in the key."""
    before = run.baseline_path.read_bytes()
    with_manifest({**run.require_manifest().found, "date": "2024-05-06T00:00:00"})
    assert main(CONTINUE) == 0
    assert run.baseline_path.read_bytes() != before


@pytest.mark.parametrize("date", ["yesterday", 7, "9999-99-99"])
def test_a_date_that_is_none_is_said(
    date: object,
    run: RunFolder,
    with_manifest: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
):
    with_manifest({**run.require_manifest().found, "date": date})
    assert main(CONTINUE) == 2
    assert f"The recorded date {date!r} is not one." in " ".join(capsys.readouterr().err.split())


def test_todays_date_is_told_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch):
    pass_years(monkeypatch)
    renderer = templates.ChatRenderer(tiny.tokenizer(TEMPLATE), template=TEMPLATE)
    message = [{"role": "user", "content": "Hi"}]
    assert renderer.text(message).startswith("[03 February 2031, 04:05]")
    renderer.date = datetime(2024, 5, 6)
    assert renderer.text(message).startswith("[06 May 2024, 00:00]")
