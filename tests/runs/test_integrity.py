"""Damage to any file of a run folder is found: what is read is what was written, or an error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.damage import all_damages, check_damage, cut, flipped
from tests.support.run_case import CHECKED, DIRECTIONS, FIT_FILE, KEY, SWEEP, content, make_run
from tests.support.search_case import Recorder, evaluate, make_study

from heretic.errors import RunError
from heretic.evaluator.baseline import BaselineFile
from heretic.events import Notice
from heretic.harness.store import ResultFile
from heretic.pipeline import read_plans
from heretic.runs import store
from heretic.runs.folder import RunFolder
from heretic.runs.journal import LostEndError
from heretic.runs.manifest import FileMark
from heretic.system import files

PLACES = 16
"""Places in each file where it is damaged; `tests/soak/damage.py` tries all."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, which no test changes."""
    return make_run(tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(run, tmp_path / "run")


def without_checksums(path: Path) -> None:
    """Turn a run into one of an earlier release."""
    manifest = json.loads((path / "manifest.json").read_text())
    for key in ("checksum", "files", "journal"):
        del manifest[key]
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 2}))
    lines = map(json.loads, (path / "trials.journal").read_text().splitlines())
    plain = [{key: value for key, value in line.items() if key != "crc"} for line in lines]
    (path / "trials.journal").write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in plain)
    )


class TestDamage:
    @pytest.mark.parametrize("name", CHECKED)
    def test_is_found_anywhere(self, run, tmp_path, name):
        data = (run / name).read_bytes()
        step = max(1, len(data) // PLACES)
        damages = all_damages(len(data), min(data.count(b"\n"), PLACES), step)
        errors = [check_damage(run, tmp_path / "copy", name, damage) for damage in damages]
        # Of the baseline, which is a cache, all damage means that it is computed again.
        assert any(errors) is (name != "baseline.safetensors")

    @pytest.mark.parametrize("name", CHECKED[1:])
    def test_a_file_of_another_run_is_not_taken(self, copy, tmp_path, name):
        other = make_run(tmp_path / "other")
        with other.lock():
            other.save_directions(-DIRECTIONS)
            other.write_sweep(SWEEP[:1])
            other.baseline_path.write_bytes(b"another")
            make_study(other).run(evaluate, 5)
            (other.path / "benchmarks" / "original.json").write_text("{}")
            (other.path / FIT_FILE).write_bytes(b"another")
        shutil.copyfile(other.path / name, copy / name)
        if name == "baseline.safetensors":
            assert content(copy)[name] is None
            return
        with pytest.raises(RunError, match=name):
            content(copy)

    def test_a_missing_manifest_is_not_a_new_run(self, copy):
        (copy / "manifest.json").unlink()
        with pytest.raises(RunError, match=r"manifest\.json: it is gone, though the run has"):
            RunFolder(copy).read_manifest()

    def test_a_file_that_the_run_did_not_write_is_not_taken(self, tmp_path):
        folder = make_run(tmp_path / "run")
        manifest = folder.require_manifest()
        left = {name: mark for name, mark in manifest.files.items() if name != "sweep.json"}
        with folder.lock():
            folder.put(type(manifest)(**{**_fields(manifest), "files": left}))
        with pytest.raises(RunError, match=r"sweep\.json.*not what the run wrote"):
            folder.read_sweep()

    def test_plans_are_not_read_from_a_damaged_front(self, copy, tmp_path):
        front = copy / "front.json"
        assert read_plans(front)
        text = front.read_text()
        changed = text.replace('"max_weight": 1.', '"max_weight": 0.', 1)
        assert changed != text
        front.write_text(changed)
        with pytest.raises(RunError, match=r"front\.json.*checksum"):
            read_plans(front)
        elsewhere = tmp_path / "front.json"  # a copy is the user's own
        elsewhere.write_text(changed)
        assert read_plans(elsewhere)

    def test_a_damaged_front_is_written_anew_by_the_search(self, copy):
        front = copy / "front.json"
        before = front.read_text()
        front.write_text("[]")
        make_study(copy).run(evaluate, 3)
        assert front.read_text() == before
        read_plans(front)

    def test_a_damaged_baseline_is_computed_again(self, copy):
        file = BaselineFile(copy / "baseline.safetensors", KEY)
        data = file.path.read_bytes()
        file.path.write_bytes(flipped(len(data) - 2, 0x40)(data))  # a logit
        assert file.read({}) is None


def _fields(manifest):
    return {name: getattr(manifest, name) for name in type(manifest).__slots__}


class TestJournal:
    def test_a_manifest_tells_of_no_line_that_a_power_cut_can_take(self, tmp_path, monkeypatch):
        """Else the run would be taken for one that has lost its end."""
        path, lengths, sync = tmp_path / "run" / "trials.journal", [0], os.fsync

        def synced(descriptor: int) -> None:
            sync(descriptor)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                lengths.append(path.stat().st_size)

        def written(file: Path, text: str, **more: Any) -> None:
            if file.name == "manifest.json" and (journal := json.loads(text)["journal"]):
                told.append(journal["length"])
                assert told[-1] <= lengths[-1]
            files.write_atomic(file, text, **more)

        told: list[int] = []
        folder = make_run(path.parent)
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(store, "write_atomic", written)
        make_study(folder).run(evaluate, 9)
        assert len(set(told)) > 1

    def test_lost_trials_are_said_and_computed_again(self, copy):
        journal = copy / "trials.journal"
        before = RunFolder(copy).read_trials()
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[: len(lines) // 2]))
        with pytest.raises(LostEndError, match="has lost its end"):
            RunFolder(copy).read_trials()
        recorder = Recorder()
        trials = make_study(copy).run(evaluate, 3, recorder)
        (notice,) = recorder.of(Notice)
        assert notice.level == "warning"
        assert "goes on from the 1 trials" in notice.text
        complete = [trial.plan for trial in trials if trial.state == "complete"]
        assert complete == [trial.plan for trial in before]
        recorder = Recorder()
        make_study(copy).run(evaluate, 3, recorder)
        assert recorder.of(Notice) == []

    def test_a_journal_that_is_gone_counts_as_lost(self, copy):
        (copy / "trials.journal").unlink()
        with pytest.raises(LostEndError):
            RunFolder(copy).read_trials()

    @pytest.mark.parametrize("kept", [20, -3])
    def test_a_torn_last_line_that_was_never_whole_is_cut_off(self, copy, kept):
        journal = copy / "trials.journal"
        whole = journal.read_bytes()
        make_study(copy).run(evaluate, 4)
        with RunFolder(copy).lock():
            manifest = RunFolder(copy).require_manifest()
        more = journal.read_bytes()[len(whole) :].splitlines(keepends=True)
        assert manifest.journal is not None
        assert manifest.journal.length == len(whole) + sum(map(len, more))
        # As after a kill: the manifest knows nothing of the last trial yet.
        (copy / "manifest.json").write_bytes(_older(copy, len(whole), whole))
        journal.write_bytes(whole + more[0][:kept])
        assert len(RunFolder(copy).read_trials()) == 3
        assert len([t for t in make_study(copy).run(evaluate, 4) if t.state == "complete"]) == 4

    def test_another_program_that_writes_is_noticed(self, copy):
        study = make_study(copy)

        def meddle(plans):
            with study.folder.journal_path.open("ab") as file:
                file.write(b'{"op_code":9}\n')
            return evaluate(plans)

        with pytest.raises(RunError, match=r"Another program has changed|damaged in line"):
            study.run(meddle, 4)

    def test_lines_in_another_order_are_found(self, copy):
        journal = copy / "trials.journal"
        lines = journal.read_bytes().splitlines(keepends=True)
        lines[3], lines[4] = lines[4], lines[3]
        journal.write_bytes(b"".join(lines))
        with pytest.raises(RunError, match="damaged in line 4"):
            RunFolder(copy).read_trials()

    def test_says_how_much_of_it_is_whole(self, copy):
        journal = copy / "trials.journal"
        lines = journal.read_bytes().splitlines(keepends=True)
        lines[-2] = lines[-2].replace(b"complete", b"c0mplete")
        journal.write_bytes(b"".join(lines))
        with pytest.raises(RunError, match="The 2 trials before it are whole"):
            RunFolder(copy).read_trials()
        journal.write_bytes(b"".join(lines[:-2]))  # as the remedy says
        trials = make_study(copy).run(evaluate, 3)
        assert len([trial for trial in trials if trial.state == "complete"]) == 3


def _older(path: Path, length: int, whole: bytes) -> bytes:
    """The manifest as it was when the journal had this length."""
    from dataclasses import replace

    from heretic.runs.journal import scan
    from heretic.runs.store import to_json

    journal = path / "trials.journal"
    now = journal.read_bytes()
    journal.write_bytes(whole)
    mark = scan(journal).mark
    journal.write_bytes(now)
    assert mark.length == length
    manifest = RunFolder(path).require_manifest()
    return to_json(replace(manifest, journal=mark).to_dict()).encode()


class TestKills:
    """A file is replaced in two steps. Between them, and after them, it is known."""

    @pytest.mark.parametrize("step", range(4))
    def test_at_every_step_of_replacing_a_file(self, copy, monkeypatch, step):
        """The process ends before the rename with this number."""
        folder = RunFolder(copy)
        renames = iter(range(100))
        replace = Path.replace

        class KilledError(BaseException):
            pass

        def replace_or_die(path, target):
            if next(renames) == step:
                raise KilledError
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", replace_or_die)
        done = False
        with folder.lock():
            try:
                folder.save_directions(DIRECTIONS + DIRECTIONS)
                done = True
                folder.write_sweep(SWEEP[:1])
            except KilledError:
                pass
        monkeypatch.undo()
        after = RunFolder(copy)
        found = after.load_directions()
        assert (found == (DIRECTIONS + DIRECTIONS if step >= 2 else DIRECTIONS)).all()
        assert done is (step >= 2)
        assert after.read_sweep() == SWEEP
        with after.lock():  # and the next one is replaced as usual
            after.write_sweep(SWEEP[1:])
            after.save_directions(DIRECTIONS - DIRECTIONS)
        assert after.read_sweep() == SWEEP[1:]
        assert (after.load_directions() == DIRECTIONS - DIRECTIONS).all()

    def test_a_file_that_was_announced_but_never_written(self, tmp_path, monkeypatch):
        folder = make_run(tmp_path / "run")
        write = files.write_atomic
        monkeypatch.setattr(
            "heretic.runs.store.write_atomic",
            lambda path, *rest, **more: (
                write(path, *rest, **more) if path.name == "manifest.json" else None
            ),
        )
        with folder.lock():
            folder.write_file("new.json", "[1]")
            assert not folder.lacks("new.json")
            monkeypatch.undo()
            folder.write_sweep(SWEEP)
        manifest = folder.require_manifest()
        assert "new.json" not in manifest.files
        assert manifest.files["directions.safetensors"].before is None

    def test_while_a_run_is_discarded(self, copy, monkeypatch):
        unlink = Path.unlink

        def die(path, **options):
            if path.name == "sweep.json":
                raise KeyboardInterrupt
            unlink(path, **options)

        monkeypatch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(copy).discard()
        monkeypatch.undo()
        folder = RunFolder(copy)
        assert folder.read_manifest() is None
        folder.discard()
        assert {path.name for path in copy.iterdir()} == {"run.lock", "benchmarks"}


class TestEarlierRuns:
    def test_are_read_as_they_are(self, copy):
        expected = content(copy)
        without_checksums(copy)
        found = content(copy)
        del expected["manifest.json"], found["manifest.json"]
        assert found == expected
        assert not RunFolder(copy).require_manifest().has_checksums

    def test_get_checksums_when_they_go_on(self, copy):
        without_checksums(copy)
        before = RunFolder(copy).read_trials()
        trials = make_study(copy).run(evaluate, 4)
        assert trials[:3] == before
        manifest = RunFolder(copy).require_manifest()
        assert manifest.has_checksums
        assert set(CHECKED) - {"manifest.json", "trials.journal"} <= set(manifest.files)
        assert all(isinstance(mark, FileMark) for mark in manifest.files.values())

    @pytest.mark.parametrize("name", sorted(set(CHECKED) - {"manifest.json"}))
    def test_are_then_protected_as_a_whole(self, copy, name):
        without_checksums(copy)
        make_study(copy).run(evaluate, 4)
        expected = content(copy)
        data = (copy / name).read_bytes()
        for place in range(0, len(data), max(1, len(data) // 12)):
            (copy / name).write_bytes(flipped(place, 0x01)(data))
            try:
                assert content(copy)[name] in (expected[name], None)
            except RunError:
                continue

    def test_a_cut_journal_is_known_too(self, copy):
        without_checksums(copy)
        make_study(copy).run(evaluate, 4)
        data = (copy / "trials.journal").read_bytes()
        first = data.index(b"\n") + 1
        (copy / "trials.journal").write_bytes(cut(first)(data))
        with pytest.raises(LostEndError):
            RunFolder(copy).read_trials()


def test_results_of_benchmarks_that_are_damaged_can_be_run_again(copy):
    path = copy / "benchmarks" / "original.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(RunError, match="Delete the file; its benchmarks are then run again"):
        ResultFile(copy)
    path.unlink()
    assert ResultFile(copy).measurements == {}
