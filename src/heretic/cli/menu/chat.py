"""Chat on the terminal, streamed, with one model or with the edited and the original in turn.

Needs no torch: a model is a callable that takes messages and yields pieces of its reply.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from heretic.cli.display.text import is_interactive
from heretic.cli.signals import is_ending
from heretic.errors import HereticError
from heretic.system.display import safe

Message = dict[str, str]
Reply = Callable[[list[Message]], Iterator[str]]
"""Takes messages (`role`, `content`), yields the reply's text piece by piece."""

_HELP = """\
/reset          start a new conversation
/system         show the system prompt
/system TEXT    set the system prompt and start a new conversation
/system off     remove the system prompt and start a new conversation
/compare        switch replies of the original model on or off
/strength       show the strength of {of}
/strength 0.5   scale {scaled}, and start a new conversation
exit, quit      leave the chat (also Ctrl+D, or Ctrl+C while you type)
Ctrl+C          stop a reply"""

_log = logging.getLogger(__name__)


@dataclass
class Strength:
    """Factor of a trial's edit or of added directions, which `/strength` changes.

    Attributes:
        of: What it scales.
        scaled: The same, with what some strengths mean.
    """

    value: float = 1.0
    of: str = "the trial's edit"
    scaled: str = "the edit (0: original, 1: the trial, 2: twice)"


_LEAVE = {"exit", "quit", "/exit", "/quit"}


@dataclass
class Speaker:
    """A model and its conversation."""

    name: str
    style: str
    reply: Reply
    messages: list[Message] = field(default_factory=list)

    def start(self, system: str | None) -> None:
        """Begin a new conversation, with a system prompt if there is one."""
        self.messages = [{"role": "system", "content": system}] if system else []


class Chat:
    """A conversation.

    Args:
        reply: The edited model.
        console: Where it is shown.
        original: The original model, silent until `/compare`. Each model has its own conversation.
        system: System prompt to start with.
        strength: What `reply` reads as the strength of its edit; None if there is no edit.
        name: What the first model is called.
        read: Reads one line; raises EOFError at the end. By default it reads from the terminal or
            from standard input.
    """

    def __init__(
        self,
        reply: Reply,
        *,
        console: Console,
        original: Reply | None = None,
        system: str | None = None,
        strength: Strength | None = None,
        name: str = "edited",
        read: Callable[[], str] | None = None,
    ) -> None:
        self.console = console
        self.strength = strength
        self.system = system
        self.read = read or _reader()
        self.speakers = [Speaker(name, "bold green", reply)]
        if original is not None:
            self.speakers.append(Speaker("original", "bold cyan", original))
        self.compare = False
        self._start()

    def run(self) -> None:
        """Chat until the user leaves."""
        extra = ", /compare" if len(self.speakers) > 1 else ""
        extra += ", /strength 0.5" if self.strength is not None else ""
        self._say(f"/help for help, /reset, /system TEXT{extra}, exit to leave.", "dim")
        while not is_ending():
            try:
                line = self.read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line.lower() in _LEAVE:
                return
            if line and not self._command(line):
                self._answer(line)

    def _start(self) -> None:
        for speaker in self.speakers:
            speaker.start(self.system)

    def _command(self, line: str) -> bool:
        """Carry out a command; False if the line is a message."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if not word.startswith("/") or not word[1:].isalpha():
            return False
        if word == "/reset":
            self._start()
            self._say("A new conversation starts.", "dim")
        elif word == "/system":
            self._set_system(rest)
        elif word == "/compare":
            self._switch_compare()
        elif word == "/strength":
            self._set_strength(rest)
        else:
            of = self.strength or Strength()
            told = _HELP.format(of=of.of, scaled=of.scaled)
            self._say(told if word == "/help" else f"Unknown command {word}.\n{told}", "dim")
        return True

    def _set_system(self, text: str) -> None:
        if not text:
            self._say(f"System prompt: {self.system or '(none)'}", "dim")
            return
        self.system = None if text == "off" else text
        self._start()
        self._say("System prompt set; a new conversation starts.", "dim")

    def _switch_compare(self) -> None:
        if len(self.speakers) == 1:
            self._say("There is no original model to compare with.", "dim")
            return
        self.compare = not self.compare
        self._start()  # both models have heard the same from here on
        state = "replies too" if self.compare else "is silent"
        self._say(f"The original model {state}; a new conversation starts.", "dim")

    def _set_strength(self, text: str) -> None:
        if self.strength is None:
            self._say("There is no trial whose edit has a strength.", "dim")
            return
        if not text:
            self._say(f"Strength of {self.strength.of}: {self.strength.value:g}", "dim")
            return
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self._say(f"{text} is not a number. Give one, such as /strength 0.5.", "yellow")
            return
        self.strength.value = value
        self._start()
        self._say(f"Strength {value:g}; a new conversation starts.", "dim")

    def _answer(self, line: str) -> None:
        """Let the models answer. A line that got no word of an answer is not kept."""
        speakers = self.speakers if self.compare else self.speakers[:1]
        for speaker in speakers:
            self.console.print(Text(f"{speaker.name}:", style=speaker.style))
            messages = [*speaker.messages, {"role": "user", "content": line}]
            text, stopped = self._stream(speaker.reply, messages)
            if text:
                speaker.messages = [*messages, {"role": "assistant", "content": text}]
            if stopped:
                break
        self.console.print()

    def _stream(self, reply: Reply, messages: list[Message]) -> tuple[str, bool]:
        """Show a reply as it comes; returns its text, and whether it was stopped or failed."""
        pieces: list[str] = []
        writer = WordWrap(self.console)
        stream: Iterator[str] | None = None
        problem = ""
        try:
            stream = reply(list(messages))
            for piece in stream:
                pieces.append(piece)
                writer.write(piece)
        except KeyboardInterrupt:
            problem = "(stopped)"
        except HereticError as error:
            problem = f"✗ {error}"
        except Exception as error:  # whatever a model or a library raises, the chat goes on
            _log.info("A reply failed", exc_info=True)
            problem = f"✗ The reply failed: {type(error).__name__}: {error}"
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()  # the model stops computing
        writer.finish()
        if problem:
            self._say(problem, "yellow")
        return "".join(pieces), bool(problem)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(safe(text), style=style))


class WordWrap:
    """Writes a stream of text to the console, breaking lines between words.

    Without a terminal the text passes as it is. Nothing in it is read as markup or as a control
    code.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._wraps = console.is_terminal
        self._column = 0
        self._word = ""

    def write(self, piece: str) -> None:
        """Take the next piece; a word is written when it is complete."""
        for character in safe(piece):
            if character in "\n\t":
                self._flush()
                self._put("\n" if character == "\n" else "    ")
            elif character == " ":
                self._flush()
                self._space()
            else:
                self._word += character
                wide = cell_len(character) > 1  # scripts that break lines anywhere
                if wide or cell_len(self._word) >= self.console.width:
                    self._flush()
        if not self._wraps:
            self._flush()
        self.console.file.flush()

    def finish(self) -> None:
        """Write what is left and end the line."""
        self._flush()
        if self._column:
            self._put("\n")
        self.console.file.flush()

    def _flush(self) -> None:
        width = cell_len(self._word)
        if self._wraps and self._column and self._column + width > self.console.width:
            self._put("\n")
        self._put(self._word)
        self._word = ""

    def _space(self) -> None:
        if not self._wraps or self._column < self.console.width:
            self._put(" ")

    def _put(self, text: str) -> None:
        self.console.file.write(text)
        self._column = 0 if text.endswith("\n") else self._column + cell_len(text)


def chat(
    reply: Reply,
    *,
    console: Console,
    original: Reply | None = None,
    system: str | None = None,
    strength: Strength | None = None,
    name: str = "edited",
) -> None:
    """Chat until the user leaves; see `Chat`."""
    Chat(
        reply, console=console, original=original, system=system, strength=strength, name=name
    ).run()


def _reader() -> Callable[[], str]:
    """Lines from the terminal with editing and history, else from standard input."""
    if not is_interactive():
        return _read_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import FormattedText

    session: PromptSession[str] = PromptSession()
    label = FormattedText([("bold", "you: ")])
    return lambda: session.prompt(label)


def _read_line() -> str:
    with suppress(ValueError):  # standard input is closed
        line = sys.stdin.readline()
        if line:
            return line
    raise EOFError
