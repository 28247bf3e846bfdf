"""`heretic runs` and odd folders: one that cannot be read is marked, the others are listed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.runs.test_integrity import without_checksums
from tests.support.run_case import make_run
from tests.support.search_case import evaluate, make_study

from heretic.cli.commands.runs import command
from heretic.errors import RunError
from heretic.runs.folder import RunFolder
from heretic.runs.listing import Known, find_run, list_runs, numbers, path_of_run
from heretic.runs.store import to_json

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\udc80",
    "\x1b[31m\u202e",
    [],
    [[]],
    {},
    {"a": {"b": [1]}},
)
"""Values of every kind, to stand where another one should."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of an earlier release, whose content nothing protects."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("good", "odd"):
        make_run(place / name)
        without_checksums(place / name)
    return place


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "runs")


def mutations(value: Any) -> Iterator[Any]:
    """Copies of a JSON document, each with one value replaced, removed or added."""
    yield from (odd for odd in ODD if odd != value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: found for name, found in value.items() if name != key}
            yield from ({**value, key: changed} for changed in mutations(inner))
        yield {**value, "unheard of": 1}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value[:index] + value[index + 1 :]
            for changed in mutations(inner):
                yield [*value[:index], changed, *value[index + 1 :]]
        yield [*value, *value[:1]]


def listed(runs: Path) -> str:
    """How the list shows the odd run. The good one must be listed as ever."""
    rows = {row.path.name: row for row in list_runs(runs)}
    assert (rows["good"].state, rows["good"].completed) == ("finished", 3)
    json.loads(to_json([row.to_dict() for row in rows.values()]))
    find_run(runs, {"model": "org/name"})
    return rows["odd"].state


def gone_on(path: Path) -> None:
    """Whatever is done with a run before its model is loaded, and a search."""
    folder = RunFolder(path)
    manifest = folder.require_manifest()
    _ = manifest.baseline, manifest.date, folder.read_sweep(), folder.load_directions()
    make_study(path).run(evaluate, 4)


class TestMutations:
    """Anything but a `RunError` fails these tests."""

    def test_of_the_manifest(self, runs):
        path = runs / "odd" / "manifest.json"
        states = set()
        for changed in mutations(json.loads(path.read_text())):
            path.write_text(json.dumps(changed))
            states.add(listed(runs))
            with suppress(RunError):
                manifest = RunFolder(path.parent).require_manifest()
                _ = manifest.baseline, manifest.date
        assert states == {"finished", "unfinished", "unreadable"}

    def test_of_trials(self, runs):
        path = runs / "odd" / "trials.journal"
        lines = path.read_text().splitlines(keepends=True)
        at = next(index for index, line in enumerate(lines) if "heretic_trial" in line)
        states = set()
        for changed in mutations(json.loads(lines[at])):
            path.write_text("".join([*lines[:at], as_line(changed), *lines[at + 1 :]]))
            states.add(listed(runs))
        assert {"finished", "unreadable"} <= states

    def test_of_the_sweep(self, runs):
        path = runs / "odd" / "sweep.json"
        errors = 0
        for changed in mutations(json.loads(path.read_text())):
            path.write_text(json.dumps(changed))
            try:
                RunFolder(runs / "odd").read_sweep()
            except RunError:
                errors += 1
        assert errors > 100

    def test_of_lines_that_only_optuna_reads(self, runs, tmp_path):
        lines = (runs / "odd" / "trials.journal").read_text().splitlines(keepends=True)
        errors = 0
        for index in (0, 1, 2, len(lines) - 1):
            for changed in list(mutations(json.loads(lines[index])))[index % 12 :: 12]:
                run = shutil.copytree(runs / "odd", tmp_path / "run")
                text = "".join([*lines[:index], as_line(changed), *lines[index + 1 :]])
                (run / "trials.journal").write_text(text)
                try:
                    gone_on(run)
                except RunError:
                    errors += 1
                shutil.rmtree(run)
        assert errors > 20


def as_line(record: Any) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


class TestOddFolders:
    @pytest.mark.parametrize("name", ["manifest.json", "trials.journal"])
    @pytest.mark.parametrize("content", [b"", b"\0" * 99, b"[" * 100_000, b"9" * 5000, b"\xff\xfe"])
    def test_nonsense(self, runs, name, content):
        (runs / "odd" / name).write_bytes(content + b"\n")
        listed(runs)

    @pytest.mark.parametrize("name", ["manifest.json", "trials.journal", "run.lock"])
    def test_what_is_no_file(self, runs, name):
        path = runs / "odd" / name
        path.unlink(missing_ok=True)
        expected = "finished" if name == "run.lock" else "unreadable"
        os.mkfifo(path)  # to open it would wait for ever
        assert listed(runs) == expected
        path.unlink()
        path.mkdir()
        assert listed(runs) == expected
        path.rmdir()
        path.symlink_to(path)  # goes in a circle
        assert listed(runs) == expected

    def test_numbers_say_that_some_runs_have_none(self, runs):
        (runs / "odd" / "manifest.json").write_text("{")
        with pytest.raises(RunError, match=r"number there is 1, and 1 run cannot be read\."):
            path_of_run("2", runs)

    def test_before_the_first_line_there_is_nothing_to_keep(self, runs):
        path = runs / "odd" / "trials.journal"
        lines = path.read_bytes().splitlines(keepends=True)
        for number in (1, 2):
            damaged = b'{"a":1,"crc":"00000000"}\n'
            path.write_bytes(b"".join([*lines[: number - 1], damaged, *lines[number:]]))
            (row,) = [row for row in list_runs(runs) if row.path.name == "odd"]
            assert f"damaged in line {number}." in str(row.note)
            assert ("keep only" in str(row.note)) == (number > 1)

    def test_a_run_without_its_manifest_is_shown(self, runs):
        (runs / "odd" / "manifest.json").unlink()
        (row,) = [row for row in list_runs(runs) if row.path.name == "odd"]
        assert row.state == "unreadable"
        assert "it is gone" in str(row.note)

    @pytest.mark.parametrize("seconds", [-1e12, -1.0, 1e15])
    def test_times_that_no_calendar_has(self, runs, seconds):
        try:
            os.utime(runs / "odd" / "manifest.json", (seconds, seconds))
        except (OSError, OverflowError):  # nor has this file system
            return
        listed(runs)

    def test_no_permission(self, runs, monkeypatch):
        """As root has every permission, the system's answer is replaced."""
        stat, odd = os.stat, str(runs / "odd")

        def denied(path, *rest, **more):
            if str(path).startswith(f"{odd}/"):
                raise PermissionError(13, "Permission denied")
            return stat(path, *rest, **more)

        monkeypatch.setattr(os, "stat", denied)
        assert listed(runs) == "unreadable"
        monkeypatch.undo()

        def no_list(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", no_list)
        with pytest.raises(RunError, match="cannot be read: Permission denied"):
            list_runs(runs)

    def test_a_name_in_another_encoding(self, runs):
        (runs / "odd").rename(runs / os.fsdecode(b"odd\xff"))
        assert len(list_runs(runs)) == 2
        for options in ([], ["--json"]):
            result = CliRunner().invoke(
                command, ["--study-checkpoint-dir", str(runs), *options], catch_exceptions=False
            )
            assert result.exit_code == 0
            assert "good" in result.output


def test_runs_of_batches_are_listed_and_named(runs: Path):
    job = runs / "night" / "small-1"
    job.mkdir(parents=True)
    (runs / "night" / "report.html").write_text("")
    shutil.copytree(runs / "good", job / "good")
    shutil.copytree(runs / "good", job / "good" / "inside" / "deeper")  # folders of runs hold none
    found = {run.name: run.path for run in list_runs(runs)}
    assert found == {
        "good": runs / "good",
        "odd": runs / "odd",
        "night/small-1/good": job / "good",
    }
    numbered = {path_of_run(str(number), runs) for number in (1, 2, 3)}
    assert numbered == set(found.values())
    assert path_of_run("night/small-1/good", runs) == job / "good"


def test_numbers_of_like_runs_in_batches_stay_while_they_are_used(runs: Path):
    for batch in ("monday", "tuesday"):
        shutil.copytree(runs / "good", runs / batch / "small" / "good")
    before = numbers(list_runs(runs))
    for name in ("monday", "tuesday"):
        later = max(path.stat().st_mtime for path in runs.rglob("*")) + 10.0
        os.utime(runs / name / "small" / "good" / "trials.journal", (later, later))
        assert {n: run.name for n, run in numbers(list_runs(runs)).items()} == {
            n: run.name for n, run in before.items()
        }


def test_a_link_to_a_batch_or_to_the_folder_itself_lists_no_run_twice(runs: Path):
    shutil.copytree(runs / "good", runs / "night" / "small" / "good")
    names = {run.name for run in list_runs(runs)}
    (runs / "latest").symlink_to("night")
    (runs / "loop").symlink_to(".")
    assert [run.name for run in list_runs(runs) if run.name not in names] == []
    elsewhere = (runs / "night").rename(runs.parent / "elsewhere")
    (runs / "latest").unlink()
    (runs / "night").symlink_to(elsewhere)
    assert {run.name for run in list_runs(runs)} == names


def test_runs_that_have_not_changed_are_not_read_again(runs: Path, monkeypatch):
    reads: list[Path] = []
    read = RunFolder.read_trials

    def counted(folder: RunFolder):
        reads.append(folder.path)
        return read(folder)

    known: Known = {}
    before = list_runs(runs, known)
    monkeypatch.setattr(RunFolder, "read_trials", counted)
    assert list_runs(runs, known) == before
    with RunFolder(runs / "good").lock():
        assert {run.name: run.state for run in list_runs(runs, known)}["good"] == "running"
    assert reads == []
    make_study(runs / "odd").run(evaluate, 5)
    reads.clear()
    assert {run.name: run.completed for run in list_runs(runs, known)} == {"good": 3, "odd": 5}
    assert reads == [runs / "odd"]
    shutil.rmtree(runs / "odd")
    list_runs(runs, known)
    assert set(known) == {runs / "good"}
