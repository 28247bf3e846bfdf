"""Interruptions: not in the middle of an import, not lost in a callback, never a traceback."""

from __future__ import annotations

import gc
import importlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from pydantic_core import SchemaSerializer
from tests.support.terminal import environment

import heretic.main
from heretic.cli import main as command_line
from heretic.cli.signals import handled_signals
from heretic.errors import HereticError

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

SLOW = """
import signal, time
for _ in range({count}):
    signal.raise_signal(signal.SIGINT)
time.sleep(0.2)
done = True
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Writes a module in whose import Ctrl+C is pressed."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, count: int) -> None:
        (tmp_path / f"{name}.py").write_text(SLOW.format(count=count))
        importlib.invalidate_caches()

    return write


def bottom() -> None:
    """Wait for an interruption that is on its way."""
    time.sleep(20)


def test_an_import_comes_to_its_end_first(slow: Callable[[str, int], None]) -> None:
    slow("imported_slowly", 1)

    def work() -> None:
        with handled_signals(work.__code__):
            importlib.import_module("imported_slowly")
            bottom()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sys.modules["imported_slowly"].done


def test_who_presses_twice_does_not_wait(slow: Callable[[str, int], None]) -> None:
    slow("imported_in_vain", 2)
    with (
        pytest.raises(KeyboardInterrupt),
        handled_signals(test_who_presses_twice_does_not_wait.__code__),
    ):
        importlib.import_module("imported_in_vain")
    assert "imported_in_vain" not in sys.modules


class Interrupting:
    """Something in whose finalizer Ctrl+C is pressed; Python drops what is raised there."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_what_python_drops_in_a_callback_comes_again() -> None:
    def work() -> None:
        with handled_signals(work.__code__):
            thing = Interrupting()
            del thing
            gc.collect()
            bottom()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_other_errors_in_callbacks_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[sys.UnraisableHookArgs] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Failing:
        def __del__(self) -> None:
            raise ValueError("on purpose")

    with handled_signals(bottom.__code__):
        thing = Failing()
        del thing
    assert [type(found.exc_value) for found in seen] == [ValueError]


def failed_import(*_: object) -> int:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as interruption:
        raise ImportError("numpy is imported by half") from interruption


def failed_plugin(*_: object) -> int:
    try:
        failed_import()
    except ImportError as error:
        raise HereticError("The plugin cannot be imported.") from error
    return 0


def interrupted_schema(*_: object) -> int:
    """Pydantic's compiled part makes the interruption a line of its own error."""

    class Interrupted(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise KeyboardInterrupt

    literal = {"type": "literal", "expected": [Interrupted("a")]}
    SchemaSerializer(cast("CoreSchema", literal))
    return 0


@pytest.mark.parametrize("made", [failed_import, failed_plugin, interrupted_schema])
def test_what_a_library_makes_of_an_interruption_is_one(
    made: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "run", made)
    assert heretic.main.main([]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_so_is_what_follows_from_a_module_imported_by_half(
    slow: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow("imported_by_half", 2)

    def swallowed(*_: object) -> int:
        with suppress(KeyboardInterrupt):
            importlib.import_module("imported_by_half")
        raise RecursionError("as of numpy, which looks for what it did not import")

    monkeypatch.setattr(command_line, "run", swallowed)
    assert heretic.main.main([]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_so_is_an_error_while_an_interruption_waits(
    slow: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow("imported_before_an_error", 1)
    monkeypatch.setattr("heretic.cli.signals._RETRY", 20.0)

    def fail(*_: object) -> int:
        importlib.import_module("imported_before_an_error")
        raise HereticError("The model does not exist.")

    monkeypatch.setattr(command_line, "run", fail)
    assert heretic.main.main([]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_another_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ImportError("on purpose")

    monkeypatch.setattr(command_line, "run", fail)
    with pytest.raises(ImportError, match="on purpose"):
        heretic.main.main([])


def test_handlers_are_put_back_and_threads_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handled_signals(bottom.__code__):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(heretic.main.main(["--version"])))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_first_moments_one_line_and_the_status(
    number: signal.Signals, tmp_path: Path
) -> None:
    """From the first line of `main` on, while modules load one after the other."""
    program = (
        "import signal, sys\n"
        "import heretic.main\n"
        "from heretic.cli import signals\n"
        "count = int(sys.argv[1])\n"
        "seen = 0\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        global seen\n"
        "        seen += 1\n"
        "        if seen == count:\n"
        f"            signal.raise_signal({int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(heretic.main.main(['inspect', 'model']))\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # enough to begin the slow imports
    for count in (1, 20, 150):  # imports into the program
        process = subprocess.run(
            [sys.executable, "-c", program, str(count)],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 128 + number, process.stderr
        line = "Interrupted." if number == signal.SIGINT else "Terminated."
        assert process.stderr.strip() == line
