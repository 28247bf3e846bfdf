"""Files appear at their destination all at once, wherever that is and whatever ends the process."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heretic.errors import ExportError
from heretic.export import staging
from heretic.export.files import check_destination, relative_files
from heretic.export.staging import prove, recover, resolved, staged, temporary

BEFORE = {"README.md": "old", "model.safetensors": "old weights", "gone.json": "old"}
AFTER = {"README.md": "new", "model.safetensors": "new weights", "templates/x.jinja": "new"}

STEPS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"})
"""Audit events of calls that change the disk, or come before one that does."""


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def held(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in relative_files(folder)}


def save(destination: Path) -> None:
    with staged(destination) as folder:
        put(folder, AFTER)


def refuse_rename(monkeypatch: pytest.MonkeyPatch, destination: Path) -> None:
    """Act as a system on which the folder itself cannot be renamed, as a mount point cannot."""
    rename = Path.rename

    def busy(self: Path, target: Any) -> Path:
        if destination in (self, Path(target)) and destination.exists():
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(staging, "_exchanged", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", busy)


def one_step(monkeypatch: pytest.MonkeyPatch, destination: Path) -> None:
    """The usual way on Linux."""


def two_steps(monkeypatch: pytest.MonkeyPatch, destination: Path) -> None:
    monkeypatch.setattr(staging, "_exchanged", lambda first, second: False)


def mount_point(monkeypatch: pytest.MonkeyPatch, destination: Path) -> None:
    refuse_rename(monkeypatch, destination)
    monkeypatch.setattr(staging, "_mount_points", lambda: [destination])


def unseen_mount_point(monkeypatch: pytest.MonkeyPatch, destination: Path) -> None:
    """A mount of the same file system where nothing lists mounts."""
    refuse_rename(monkeypatch, destination)
    monkeypatch.setattr(staging, "_mount_points", list)


WAYS = [one_step, two_steps, mount_point, unseen_mount_point]
Way = Callable[[pytest.MonkeyPatch, Path], None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [None, {}, BEFORE], ids=["absent", "empty", "export"])
def test_new_files_take_the_place_of_the_old(
    way: Way, before: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "deep" / "m"
    if before is not None:
        destination.mkdir(parents=True)
        put(destination, before)
    number = destination.stat().st_ino if before is not None else None
    way(monkeypatch, destination)
    save(destination)
    assert held(destination) == AFTER
    assert [path.name for path in destination.parent.iterdir()] == ["m"]
    assert sorted(path.name for path in destination.iterdir()) == [
        "README.md", "model.safetensors", "templates",
    ]  # fmt: skip
    if way in (mount_point, unseen_mount_point) and number is not None:
        assert destination.stat().st_ino == number


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failure_leaves_everything_as_it_was(
    way: Way, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "m"
    put(destination, BEFORE)
    way(monkeypatch, destination)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt

    def fail() -> None:
        with staged(destination) as folder:
            put(folder, AFTER)
            raise error

    with pytest.raises(expected):
        fail()
    assert held(destination) == BEFORE
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not [path for path in destination.iterdir() if path.name.startswith(".")]


def killed_at(step: int, destination: Path) -> bool:
    """Save in a process that is killed before its n-th step; False if it had fewer."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, arguments: Any) -> None:
            nonlocal left
            if event in STEPS and (event != "open" or str(destination.name) in str(arguments[0])):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            save(destination)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kills(destination: Path) -> Iterator[int]:
    """Kill at every step in turn."""
    step = 0
    while killed_at(step, destination):
        yield step
        step += 1
    assert step > 10


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_step_leaves_the_old_or_the_new(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "m"
    put(destination, BEFORE)
    way(monkeypatch, destination)
    seen = set()
    for _step in kills(destination):
        if way is one_step:  # the usual way needs no help afterwards
            assert held(destination) in (BEFORE, AFTER)
        recover(destination)
        assert held(destination) in (BEFORE, AFTER)
        seen.add(held(destination)["README.md"])
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
        assert not [path for path in destination.iterdir() if path.name.startswith(".")]
        for path in sorted(destination.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        put(destination, BEFORE)
    assert seen == {"old", "new"}
    assert held(destination) == AFTER


def test_what_a_living_process_saves_is_left_alone(tmp_path: Path) -> None:
    destination = tmp_path / "m"
    with staged(destination) as folder:
        put(folder, BEFORE)
        recover(destination)
        save(destination)
        assert held(destination) == AFTER
        assert folder.is_dir()
    assert held(destination) == BEFORE


def test_what_earlier_releases_left_is_swept(tmp_path: Path) -> None:
    """Their folders hold a process's number, which may be that of this process."""
    for number in (999999999, os.getpid()):
        for name in (f".m.{number}-abc.tmp", f".m.{number}-abc.old"):
            put(tmp_path / name / "old", BEFORE)
        put(tmp_path, {".m.notes.tmp/thesis.txt": "mine"})
        recover(tmp_path / "m")
        # An earlier export that was moved aside is put back if nothing took its place.
        assert held(tmp_path / "m") == BEFORE
        assert {path.name for path in tmp_path.iterdir()} == {"m", ".m.notes.tmp"}


def test_links_lead_to_the_folder_that_is_replaced(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk)
    save(check_destination(link, ""))
    assert link.is_symlink()
    assert held(disk) == AFTER
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    save(check_destination(tmp_path / "dangling", ""))
    assert held(tmp_path / "later") == AFTER


def test_home_is_where_a_path_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolved(Path("~/models/m")) == tmp_path / "models" / "m"
    with pytest.raises(ExportError, match="cannot be a folder"):
        resolved(Path("~nobody-of-that-name/m"))
    with pytest.raises(ExportError, match="cannot be a folder"):
        resolved(Path("a\0b"))


def test_the_working_directory_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(check_destination(Path(), ""))
    assert Path("README.md").read_text() == "new"


def test_what_file_systems_keep_at_their_root_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "m" / "lost+found").mkdir(parents=True)
    for _ in range(2):
        save(check_destination(tmp_path / "m", "")) if not held(tmp_path / "m") else None
    assert held(tmp_path / "m") == AFTER


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file", "is a file"),
        ("file/m", "file is a file"),
        ("file/deep/er/m", "file is a file"),
        ("n" * 300, "name too long"),
        ("circle/m", "cannot be a folder|Too many levels"),
    ],
)
def test_what_cannot_be_a_folder_is_said_before_the_work(
    place: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ExportError, match=f"(?i){told}") as caught:
        check_destination(tmp_path / place, "")
    assert caught.value.remedy
    assert {path.name for path in tmp_path.iterdir()} == {"file", "circle"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_place_that_takes_nothing_is_said_before_the_work(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.endswith(".heretic"):
            raise OSError(number, os.strerror(number))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match=os.strerror(number)):
        check_destination(tmp_path / "deep" / "m", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_a_place_that_takes_nothing_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    mkdir = Path.mkdir

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.parent == tmp_path and self.name != "m":
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    save(check_destination(tmp_path / "m", ""))
    assert held(tmp_path / "m") == AFTER


def test_proving_leaves_nothing(tmp_path: Path) -> None:
    put(tmp_path / "there", BEFORE)
    prove(tmp_path / "there")
    prove(tmp_path / "deep" / "er" / "m")
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
    assert held(tmp_path / "there") == BEFORE


def test_files_and_folders_reach_the_disk_before_they_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    there: list[bool] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        there.append((tmp_path / "m").exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save(tmp_path / "m")
    staged_first = [path for path, appeared in zip(synced, there, strict=True) if not appeared]
    for name in (*AFTER, "templates", staging.NEW):
        assert any(path.endswith(f"/{name}") for path in staged_first), name
    assert str(tmp_path) in synced


def test_a_disk_that_fails_late_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExportError, match="Input/output"):
        save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_copies_of_killed_uploads_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        with temporary() as folder:
            put(folder, BEFORE)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    with temporary() as folder:
        assert not list(tmp_path.rglob("model.safetensors"))
        put(folder, AFTER)
        with temporary() as other:
            assert other != folder
            assert held(folder) == AFTER
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_to_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent may be: then everything beside it can be made, and only the exchange fails."""
    folder = tmp_path / "folder"
    folder.mkdir()
    staging.prove(folder)
    folder.chmod(0o555)
    allowed = os.access  # an administrator may write everywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode, **k: Path(path) != folder and allowed(path, mode, **k)
    )
    with pytest.raises(ExportError, match=r"Nothing can be saved in .*Permission denied"):
        staging.prove(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
