"""`heretic chat ADDRESS`, as it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from tests.support.chat_server import event, reply, serve_chats
from tests.support.terminal import CTRL_C, end, environment, plain

from heretic.cli.main import run
from heretic.errors import SettingsError


def chat(folder: Path, *arguments: str, said: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "heretic", "chat", *arguments],
        cwd=folder,
        env=environment(XDG_CACHE_HOME=str(folder)),
        input=said,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


def test_from_a_pipe(tmp_path: Path):
    hostile = reply("Hel", "lo \x1b[31m[bold]x[/bold]\x07")
    with serve_chats(names=["org/m"], answers=[[hostile], [reply("Again.")]]) as server:
        found = chat(tmp_path, server.url, "--system-prompt", "Be.", said="hi\nonce more\n")
    assert found.returncode == 0, found.stderr
    assert "\x1b" not in found.stdout + found.stderr
    first = found.stdout.splitlines()[0]
    host = server.url.removeprefix("http://").removesuffix("/v1")
    assert first == f"Chats are sent to {host} (model org/m), without a key."
    assert "org/m:\nHello \ufffd[31m[bold]x[/bold]\ufffd\n" in found.stdout
    assert [message["role"] for message in server.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert server.requests[0]["messages"][0]["content"] == "Be."


def test_what_is_wrong_is_one_line(tmp_path: Path):
    with serve_chats(names=["a", "b"]) as server:
        found = chat(tmp_path, server.url, said="hi\n")
    assert found.returncode == 2
    assert "it has 2 models: a, b. Name the model by --served-model NAME." in found.stderr
    assert "Traceback" not in found.stderr


def test_the_chat_goes_on_after_a_failure(tmp_path: Path):
    with serve_chats(answers=[[event("Well")], [reply("Here.")]]) as server:
        found = chat(tmp_path, server.url, said="hi\nagain\n")
    assert found.returncode == 0, found.stderr
    assert "broke off before its end" in found.stdout
    assert "Here." in found.stdout


def test_ctrl_c_ends_a_reply_and_its_request(tmp_path: Path):
    with serve_chats(waits=True, answers=[[event("Well, and on ")]]) as server:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "heretic", "chat", server.url],
            cwd=str(tmp_path),
            env=environment(XDG_CACHE_HOME=str(tmp_path)),
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=120,
        )
        child.expect("you:")
        child.send("hi\r")
        child.expect("Well, and")
        child.send(CTRL_C)
        child.expect("stopped")
        assert server.gone.wait(20)
        child.expect("you:")
        child.send("exit\r")
        assert "Traceback" not in plain(child.before)
        assert end(child) == 0


@pytest.mark.parametrize("option", [["--served-model", "m"], ["--api-key-env", "KEY"]])
def test_options_of_servers_are_for_addresses(option: list[str]):
    with pytest.raises(SettingsError, match="are for the address of a server"):
        run(["chat", "org/model", *option])
