"""Chat: streamed, with commands, side by side, stopped by Ctrl+C."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.terminal import CTRL_C, CTRL_D, end, in_pipe, in_terminal, written
from tests.support.terminal_program import HOSTILE

from heretic.cli.menu.chat import Chat, Message, Strength, WordWrap
from heretic.errors import ModelError

ENTER = "\r"


class FakeModel:
    """Answers with its name, and keeps what it was told."""

    def __init__(self, name: str, error: BaseException | None = None) -> None:
        self.name = name
        self.error = error
        self.told: list[list[Message]] = []
        self.closed = 0

    def reply(self, messages: list[Message]) -> Iterator[str]:
        self.told.append([dict(message) for message in messages])
        try:
            yield f"{self.name} "
            error, self.error = self.error, None
            if error is not None:
                raise error
            yield HOSTILE
        finally:
            self.closed += 1


def lines(*texts: str) -> Callable[[], str]:
    source = iter(texts)

    def read() -> str:
        try:
            return next(source)
        except StopIteration:
            raise EOFError from None

    return read


def talk(*texts: str, model: FakeModel, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    Chat(model.reply, console=console, read=lines(*texts), **options).run()
    return written(console)


def test_the_conversation_is_kept_and_shown_as_it_is() -> None:
    model = FakeModel("edited")
    text = talk("hi", "", "again", "quit", "never", model=model, system="Be.")
    assert "[/INST] [bold red]loud[/]" in text
    assert "\x1b" not in text
    said = f"edited {HOSTILE}"
    assert model.told == [
        [{"role": "system", "content": "Be."}, {"role": "user", "content": "hi"}],
        [
            {"role": "system", "content": "Be."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "again"},
        ],
    ]


def test_commands() -> None:
    model = FakeModel("edited")
    text = talk(
        *("hi", "/reset", "one", "/system", "/system Be brief.", "two", "/system", "/system off"),
        *("three", "/help", "/nonsense", "/compare", "/etc/passwd is what?"),
        model=model,
    )
    assert [len(messages) for messages in model.told] == [1, 1, 2, 1, 3]
    assert model.told[2][0] == {"role": "system", "content": "Be brief."}
    assert model.told[4][-1]["content"] == "/etc/passwd is what?"
    for told in ("System prompt: (none)", "System prompt: Be brief.", "Unknown command /nonsense"):
        assert told in text
    assert "no original model" in text


def test_the_strength_of_an_edit() -> None:
    model, strength = FakeModel("edited"), Strength()
    said = ("hi", "/strength", "/strength 0.5", "again", "/strength nan", "/strength a lot")
    text = talk(*said, model=model, strength=strength)
    assert strength.value == 0.5
    assert [len(messages) for messages in model.told] == [1, 1]
    for told in (
        "Strength of the trial's edit: 1",
        "Strength 0.5; a new",
        "nan is not",
        "a lot is not",
    ):
        assert told in text
    assert "no trial" in talk("/strength 2", model=model)


def test_what_the_strength_scales_is_told() -> None:
    directions = Strength(0.0, "the run's directions", "the directions (0: original)")
    text = talk("/strength", "/help", model=FakeModel("steered"), strength=directions)
    assert "Strength of the run's directions: 0" in text
    assert "scale the directions (0: original), and start a new conversation" in text
    assert "trial" not in text


@pytest.mark.parametrize("leave", ["exit", "quit", "QUIT", "/exit"])
def test_ways_to_leave(leave: str) -> None:
    model = FakeModel("edited")
    talk(leave, "hi", model=model)
    assert model.told == []


def test_side_by_side_each_model_keeps_its_own_conversation() -> None:
    edited, original = FakeModel("edited"), FakeModel("original")
    said = ("/compare", "a", "b", "/compare", "c")
    text = talk(*said, model=edited, original=original.reply)
    assert text.index("edited:") < text.index("original:")
    assert [len(messages) for messages in edited.told] == [1, 3, 1]
    assert [len(messages) for messages in original.told] == [1, 3]
    assert original.told[1][1]["content"].startswith("original")


def test_an_error_is_shown_and_the_message_is_not_kept() -> None:
    model = FakeModel("edited", ModelError("Out of [/INST] memory.", remedy="Shorten."))
    text = talk("a", "b", model=model)
    assert "✗ Out of [/INST] memory. Shorten." in text
    # what was said before the failure stays, as it stays on the screen
    assert [len(messages) for messages in model.told] == [1, 3]


def test_ctrl_c_stops_the_reply_and_keeps_its_beginning() -> None:
    model = FakeModel("edited", KeyboardInterrupt())
    original = FakeModel("original")
    text = talk("/compare", "a", "b", model=model, original=original.reply)
    assert "(stopped)" in text
    assert model.told[1][1] == {"role": "assistant", "content": "edited "}
    assert [len(messages) for messages in original.told] == [1]
    assert model.closed == 2


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["one two", " three four"], "one two\nthree four\n"),
        (["onet", "wothreefourfive six"], "onetwothreef\nourfive six\n"),
        (["a\n\n", "b"], "a\n\nb\n"),
        (["  in\tdent"], "  in    dent\n"),
        (["漢字漢字漢字漢字"], "漢字漢字漢字\n漢字\n"),
        ([], ""),
    ],
)
def test_words_are_wrapped_whole(pieces: list[str], shown: str) -> None:
    console = Console(file=io.StringIO(), width=12, force_terminal=True)
    writer = WordWrap(console)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    text = written(console)
    assert "\n".join(line.rstrip() for line in text.split("\n")) == shown


def test_without_a_terminal_text_passes_unwrapped() -> None:
    console = Console(file=io.StringIO(), width=10)
    writer = WordWrap(console)
    writer.write("a line far longer than ten")
    writer.finish()
    assert console.file.getvalue() == "a line far longer than ten\n"  # type: ignore[attr-defined]


def test_lines_from_a_pipe(tmp_path: Path) -> None:
    result = in_pipe("chat", tmp_path, stdin="hello\n/compare\nagain\nfail\n")
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "edited 2 system [/INST] [bold red]loud[/]" in result.stdout
    assert "original 2 system" in result.stdout
    assert "✗ The model is gone. Load it again." in result.stdout
    assert result.stdout.endswith("chat left\n")


@pytest.mark.parametrize("leave", [CTRL_C, CTRL_D, "exit" + ENTER])
def test_on_a_terminal(tmp_path: Path, leave: str) -> None:
    child = in_terminal("chat", tmp_path, columns=80)
    child.expect("you:")
    child.send("long" + ENTER)
    child.expect("and on and on")
    child.send(CTRL_C)
    child.expect("stopped")
    child.expect("you:")
    child.send("short" + ENTER)
    child.expect("edited 4 system")
    child.expect("end short")
    child.expect("you:")
    child.send("/reset" + ENTER)
    child.expect("new conversation starts")
    child.expect("you:")
    child.send(leave)
    child.expect("chat left")
    assert end(child) == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert"),
        IndexError("index out of range in self"),
        ModelError("Out of memory.", remedy="Start a new one."),
        MemoryError(),
        RecursionError("too deep"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ],
)
def test_an_error_in_a_reply_does_not_end_the_chat(error: Exception):
    failing = iter([error])

    def reply(messages: list[Message]) -> Iterator[str]:
        yield "Well"
        for problem in failing:
            raise problem
        yield f", {messages[-1]['content']}"

    lines = iter(["first", "second"])

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    console = Console(file=io.StringIO(), width=200)
    Chat(reply, console=console, read=read).run()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✗" in shown
    assert str(error) in shown
    assert "Well, second" in shown
