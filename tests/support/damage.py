"""Damage to the files of a run folder, and what may come of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from heretic.errors import RunError
from heretic.runs.folder import RunFolder
from tests.support.run_case import CHECKED, N_TRIALS, content
from tests.support.search_case import evaluate, make_study

FLIPS = (0x01, 0x20, 0x80)
"""Bits that change a byte: the lowest, the one that turns letters into others, the highest."""

Damage = Callable[[bytes], bytes]


def flipped(place: int, bits: int) -> Damage:
    """One byte changed."""
    return lambda data: data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def replaced(place: int, byte: bytes) -> Damage:
    """One byte replaced by another."""
    return lambda data: data[:place] + byte + data[place + 1 :]


def cut(length: int) -> Damage:
    """The end lost."""
    return lambda data: data[:length]


def without_line(number: int) -> Damage:
    """One line lost."""

    def damage(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        return b"".join(lines[:number] + lines[number + 1 :])

    return damage


def all_damages(size: int, lines: int, step: int) -> Iterator[Damage]:
    """Damage at every `step`-th place of a file."""
    for place in range(0, size, step):
        yield from (flipped(place, bits) for bits in FLIPS)
        yield replaced(place, b"\n")
        yield cut(place)
    yield from (without_line(number) for number in range(lines))


def check_damage(run: Path, copy: Path, name: str, damage: Damage) -> bool:
    """Damage one file in a copy of a run, and check what comes of it.

    Args:
        run: An undamaged run by `make_run`.
        copy: Where to make the copy; removed afterwards.

    Returns:
        Whether the damage was an error. Else nothing that is read has changed, or is computed anew.

    Raises:
        AssertionError: Something else is read than was written, or another error was raised.
    """
    shutil.copytree(run, copy)
    try:
        path = copy / name
        before, expected = path.read_bytes(), content(run)
        path.write_bytes(damage(before))
        if path.read_bytes() == before:
            return False
        found, error = _read(copy)
        if error is not None:
            assert str(copy) in str(error), f"the error does not say where: {error}"
            assert error.remedy, f"the error does not say what to do: {error}"
            if name == "trials.journal":
                check_resumed(run, copy)
            return True
        differing = {key for key in CHECKED if found[key] != expected[key]}
        assert differing <= {"baseline.safetensors"}, f"{differing} are read as something else"
        assert not differing or found["baseline.safetensors"] is None
        return False
    finally:
        shutil.rmtree(copy)


def _read(copy: Path) -> tuple[dict[str, object], RunError | None]:
    try:
        return content(copy), None
    except RunError as error:
        return {}, error


def check_resumed(run: Path, copy: Path) -> None:
    """A search in a damaged run is refused, or has the trials that it had and goes on alike."""
    expected = [trial.plan for trial in RunFolder(run).read_trials()]
    try:
        trials = make_study(copy).run(evaluate, N_TRIALS)
    except RunError:
        return
    plans = [trial.plan for trial in trials if trial.state == "complete"]
    assert plans == expected
