"""Terminals that are closed, or at which nobody sits; the signals that end a process there."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.terminal import (
    CTRL_C,
    arguments,
    end,
    environment,
    hang_up,
    in_pipe,
    in_terminal,
    plain,
)

ENTER = "\r"
SAVE: dict[str, Any] = {"trial_index": 3, "model_action": "save", "export_strategy": "merge"}
SAVED = "abliteration_params.json"


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never appeared")


class TestClosed:
    """The terminal is closed while a process runs in it."""

    def test_at_a_question_the_process_ends_and_says_so_by_its_status(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path)
        child.expect("Which trial")
        assert hang_up(child) == 128 + signal.SIGHUP

    def test_in_a_search_that_somebody_would_have_to_go_on_from(self, tmp_path: Path) -> None:
        child = in_terminal("endless", tmp_path)
        child.expect("Loading model")
        assert hang_up(child) == 128 + signal.SIGHUP

    def test_a_save_that_settings_ask_for_is_made(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path, **SAVE, n_additional_trials=2, save_directory="slow")
        child.expect("search|front")  # the search goes on, too
        assert hang_up(child) == 0
        assert (tmp_path / "slow" / SAVED).is_file()

    def test_a_save_that_was_asked_for_at_the_menu_is_made(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path, trial_index=0, save_directory="slow")
        child.expect("What to do with trial")
        child.send(ENTER)
        child.expect("What to save")
        child.send(ENTER)
        wait_for(tmp_path / "slow" / "begun")
        assert hang_up(child) == 0
        assert (tmp_path / "slow" / SAVED).is_file()

    def test_without_the_signal_too(self, tmp_path: Path) -> None:
        child = in_terminal(
            "menu", tmp_path, shell="trap '' HUP; exec \"$@\"", **SAVE, save_directory="slow"
        )
        child.expect("front")
        assert hang_up(child) == 0
        assert (tmp_path / "slow" / SAVED).is_file()

    def test_a_question_without_the_signal_is_left_unanswered(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path, shell="trap '' HUP; exec \"$@\"")
        child.expect("Which trial")
        assert hang_up(child) == 0

    def test_a_chat_ends(self, tmp_path: Path) -> None:
        child = in_terminal("chat", tmp_path)
        child.expect("you:")
        assert hang_up(child) == 128 + signal.SIGHUP


class TestTerminated:
    """SIGTERM is like Ctrl+C, and nobody is asked any more."""

    @pytest.mark.parametrize(
        ("mode", "text"), [("menu", "Which trial"), ("checkpoint", "already exists")]
    )
    def test_at_a_question(self, tmp_path: Path, mode: str, text: str) -> None:
        child = in_terminal(mode, tmp_path)
        child.expect(text)
        child.kill(signal.SIGTERM)
        assert end(child) == 128 + signal.SIGTERM
        if mode == "menu":
            assert "To go on from here" in plain(child.before)
        shown, hidden = child.before.rfind("\x1b[?25h"), child.before.rfind("\x1b[?25l")
        assert shown >= hidden

    def test_the_panel_gives_the_cursor_back(self, tmp_path: Path) -> None:
        child = in_terminal("panel", tmp_path)
        child.expect("\x1b\\[\\?25l")
        child.kill(signal.SIGTERM)
        child.expect("Terminated.")
        text = child.before
        assert end(child) == 128 + signal.SIGTERM
        assert "\x1b[?25h" in text + child.before

    def test_a_reply_ends_and_the_chat_with_it(self, tmp_path: Path) -> None:
        child = in_terminal("chat", tmp_path)
        child.expect("you:")
        child.send("long" + ENTER)
        child.expect("and on")
        child.kill(signal.SIGTERM)
        child.expect("stopped")
        child.expect("chat left")
        assert end(child) == 128 + signal.SIGTERM


class TestNobodyThere:
    """A terminal at which nobody can answer: the command that goes on is printed, as in a pipe."""

    def check(self, status: int, text: str) -> None:
        assert status == 0
        assert "To go on from here" in text
        assert "Which trial" not in text

    @pytest.mark.parametrize(
        "kernel",
        [{"JPY_PARENT_PID": "1"}, {"PAGER": "cat", "GIT_PAGER": "cat", "TERM": "xterm-color"}],
    )
    def test_in_a_cell_of_a_notebook(self, tmp_path: Path, kernel: dict[str, str]) -> None:
        child = in_terminal("menu", tmp_path, env=kernel)
        self.check(end(child), plain(child.before))
        child = in_terminal("search", tmp_path, env=kernel)
        assert end(child) == 0
        assert "\x1b[?25l" not in child.before  # no panel that moves the cursor

    def test_in_the_background(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path, shell='set -m; "$@" & wait $!')
        self.check(end(child), plain(child.before))

    def test_without_a_controlling_terminal(self, tmp_path: Path) -> None:
        master, slave = pty.openpty()
        with subprocess.Popen(
            [sys.executable, *arguments("menu", {})],
            cwd=tmp_path,
            env=environment(),
            stdin=slave,
            stdout=slave,
            start_new_session=True,
        ) as process:
            os.close(slave)
            text = b""
            try:
                while piece := os.read(master, 4096):
                    text += piece
            except OSError:  # the other side is closed
                pass
            os.close(master)
        self.check(process.returncode, plain(text.decode()))

    def test_ctrl_c_still_works_where_somebody_sits(self, tmp_path: Path) -> None:
        child = in_terminal("menu", tmp_path)
        child.expect("Which trial")
        child.send(CTRL_C)
        child.expect("menu left")
        assert end(child) == 0

    def test_hangups_that_are_switched_off_stay_off(self, tmp_path: Path) -> None:
        assert in_pipe("menu", tmp_path).returncode == 0
        process = subprocess.run(
            ["bash", "-c", "trap '' HUP TERM; exec \"$@\"", "bash", sys.executable, "-c", IGNORED],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.stdout.split() == ["True", "True"], process.stderr


IGNORED = """
import signal
from heretic.cli.signals import handled_signals
with handled_signals(handled_signals.__code__):
    for number in (signal.SIGHUP, signal.SIGTERM):
        print(signal.getsignal(number) == signal.SIG_IGN)
"""
