"""Links in a run folder, and its lock: nothing elsewhere changes, one process at a time works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.run_case import CHECKED, DIRECTIONS, SWEEP, make_run
from tests.support.search_case import evaluate, make_study

from heretic.errors import RunError
from heretic.harness.store import ResultFile
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs
from heretic.runs.log import logger, logging_to
from heretic.system.files import write_atomic

OTHER = b"somebody else's file\n"
HOLD = [sys.executable, "-m", "tests.support.search_case", "hold"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "run").path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere"
    path.write_bytes(OTHER)
    return path


def everything_written(run: Path) -> None:
    """All that is ever written into a run folder."""
    folder = RunFolder(run)
    with folder.lock(), logging_to(folder.log_path):
        logger.info("a line")
        folder.save_directions(DIRECTIONS + DIRECTIONS)
        folder.write_sweep(SWEEP[:1])
        folder.write_file("baseline.safetensors", b"outputs")
        make_study(folder).run(evaluate, 4)
        results = ResultFile(run)
        results.write()
        folder.write_manifest(folder.require_manifest())
        folder.discard()


class TestLinks:
    @pytest.mark.parametrize("name", [*CHECKED, "heretic.log", "run.lock"])
    @pytest.mark.parametrize("content", ["its own", "another's", "none"])
    def test_what_they_point_to_is_not_changed(self, run, elsewhere, name, content):
        """Whether or not the link is refused: a file that lies elsewhere stays as it is."""
        path = run / name
        if content == "its own" and path.is_file():
            elsewhere.write_bytes(path.read_bytes())
        if content == "none":
            elsewhere.unlink()
        before = elsewhere.read_bytes() if elsewhere.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere)
        try:
            everything_written(run)
        except RunError as error:
            assert str(path) in str(error) or "manifest" in str(error)  # noqa: PT017
        assert (elsewhere.read_bytes() if elsewhere.exists() else None) == before

    @pytest.mark.parametrize("name", ["trials.journal", "heretic.log", "run.lock"])
    def test_what_is_changed_in_place_may_not_be_one(self, run, elsewhere, name):
        shutil.copyfile(run / "trials.journal", elsewhere)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(elsewhere)
        with pytest.raises(RunError, match=f"{name} is a link.*remove the link"):
            everything_written(run)

    def test_nor_a_folder_in_it(self, run, tmp_path):
        shutil.rmtree(run / "benchmarks")
        (tmp_path / "other").mkdir()
        (run / "benchmarks").symlink_to(tmp_path / "other")
        with pytest.raises(RunError, match="benchmarks is a link"):
            ResultFile(run).write()
        assert list((tmp_path / "other").iterdir()) == []

    @pytest.mark.parametrize("name", ["trials.journal", "heretic.log", "front.json"])
    def test_files_that_share_their_content_are_parted(self, run, tmp_path, name):
        """A backup made of hard links must not change with the run."""
        (run / "heretic.log").touch()
        backup = tmp_path / "backup"
        os.link(run / name, backup)
        before = backup.read_bytes()
        folder = RunFolder(run)
        with folder.lock(), logging_to(folder.log_path):
            logger.info("a line")
            make_study(folder).run(evaluate, 6)
        assert backup.read_bytes() == before
        assert (run / name).read_bytes() != before

    def test_the_run_folder_itself_may_be_on_another_disk(self, run, tmp_path):
        run.rename(tmp_path / "disk")
        run.symlink_to(tmp_path / "disk")
        assert len(make_study(run).run(evaluate, 4)) == 4
        assert [row.state for row in list_runs(run.parent)] == ["finished"]

    def test_temporary_files_cannot_be_foreseen(self, tmp_path, elsewhere, monkeypatch):
        names = iter(["foreseen", "other"])
        monkeypatch.setattr("heretic.system.files.secrets.token_hex", lambda _: next(names))
        (tmp_path / ".file.foreseen.tmp").symlink_to(elsewhere)
        with pytest.raises(RunError, match="File exists"):
            write_atomic(tmp_path / "file", "new")
        assert elsewhere.read_bytes() == OTHER
        write_atomic(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"


@contextmanager
def holding(run: Path) -> Iterator[None]:
    """Another process holds the lock of a run."""
    with subprocess.Popen(
        [*HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            holder.kill()


class TestLock:
    def test_holds_without_its_file(self, run):
        with holding(run):
            (run / "run.lock").unlink()
            assert RunFolder(run).is_locked
            assert [row.state for row in list_runs(run.parent)] == ["running"]
            with pytest.raises(RunError, match="Another process"), RunFolder(run).lock():
                pass
        with RunFolder(run).lock():
            pass

    def test_holds_with_another_file_in_its_place(self, run):
        with holding(run):
            (run / "run.lock").unlink()
            (run / "run.lock").touch()
            with pytest.raises(RunError, match="Another process"), RunFolder(run).lock():
                pass

    def test_a_held_file_of_an_earlier_release_counts_too(self, run):
        from filelock import FileLock

        with (
            FileLock(run / "run.lock"),
            pytest.raises(RunError, match="Another process"),
            RunFolder(run).lock(),
        ):
            pass

    def test_where_folders_cannot_be_locked_the_file_is(self, run, monkeypatch):
        import fcntl

        flock = fcntl.flock

        def files_only(descriptor, operation):
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(9, "Bad file descriptor")
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", files_only)
        first, second = RunFolder(run), RunFolder(run)
        with first.lock():
            assert second.is_locked
            with pytest.raises(RunError, match="Another process"), second.lock():
                pass
        assert not second.is_locked

    @pytest.mark.parametrize("again", [False, True])
    def test_a_folder_that_was_moved_is_not_written_to_any_more(self, run, tmp_path, again):
        study = make_study(run)

        def moved(plans):
            run.rename(tmp_path / "moved")
            if again:  # another process has begun a new run
                make_run(run)
            return evaluate(plans)

        with pytest.raises(RunError, match="was moved or deleted"):
            study.run(moved, 4)
        assert run.exists() is again
        if again:
            assert len(RunFolder(run).read_trials()) == 3
        trials = make_study(tmp_path / "moved").run(evaluate, 4)
        assert len([trial for trial in trials if trial.state == "complete"]) == 4
