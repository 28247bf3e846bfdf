"""The planted faults and the controls: what is run for each, and what must be said."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer.processes import failure, run_process, say
from benchmarks.trust_parts import models

import heretic
from heretic.demo.base import planted_model
from heretic.demo.data import prompt_file

CARRIES_TOPIC = ("it carries the topic", "what it carries is the topic")
"""What `validate` says if the direction of the topic works too."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one planted fault, or for a control.

    Attributes:
        fault: What was planted; for a control, that nothing was.
        command: What was run, with defaults but for prompts.
        said: What it said of this fault; empty if nothing.
        is_control: Whether nothing should have been said.
    """

    fault: str
    command: str
    said: str
    is_control: bool = False

    @property
    def is_right(self) -> bool:
        """A fault was told, or nothing was told of a control."""
        return bool(self.said) != self.is_control


class Workshop:
    """Makes models and runs commands in a folder, where what was made before is found again.

    Args:
        prompts: Evaluation prompts of each kind that models are scored on.
    """

    def __init__(self, work: Path, prompts: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.original = planted_model(say)
        self._options = [
            f"--{kind}-evaluation-prompts.{key}={value}"
            for kind, name in (("good", "ordinary"), ("bad", "topic"))
            for key, value in (
                ("dataset", prompt_file(f"{name}_test")),
                ("split", f"train[:{prompts}]"),
            )
        ]

    @property
    def export(self) -> Path:
        """The demo's edited model, saved by the demo."""
        return self.work / "demo" / "export"

    @property
    def run(self) -> Path:
        """The demo's run folder."""
        [found] = (self.work / "demo" / "runs").iterdir()
        return found

    def demo(self) -> None:
        """Search and save as the demo does."""
        folder = self.work / "demo"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            places = [f"--study-checkpoint-dir={folder / 'runs'}"]
            self._heretic(["demo", f"--save-directory={self.export}", *places], folder)
            (folder / "done").touch()

    def made(self, name: str, make: Callable[[Path, Path], None]) -> Path:
        """A changed copy of the export."""
        target = self.work / name
        if not (self.work / f"{name}.done").exists():
            shutil.rmtree(target, ignore_errors=True)
            make(self.export, target)
            (self.work / f"{name}.done").touch()
        return target

    def compared(self, judged: Path) -> dict[str, Any]:
        """What `heretic compare` says of a model beside the planted one."""
        command = ["compare", str(judged), str(self.original), "--json", *self._options]
        return self._json(f"compare-{judged.name}", command)

    def audited(self, folder: Path) -> dict[str, Any]:
        """What `heretic audit` says of an export."""
        return self._json(f"audit-{folder.name}", ["audit", str(folder), "--json"], may_fail=True)

    def validated(self, topic: Path) -> dict[str, Any]:
        """What `heretic validate` says of the demo's run."""
        command = ["validate", str(self.run), "--json", f"--topic-prompts.dataset={topic}"]
        return self._json(f"validate-{topic.stem}", [*command, "--topic-prompts.split=train[:100]"])

    def _json(self, name: str, command: Sequence[str], *, may_fail: bool = False) -> dict[str, Any]:
        """The JSON that a command printed, now or in an earlier call."""
        kept = self.work / f"{name}.json"
        if not kept.exists():
            folder = self.work / f"{name}.work"
            folder.mkdir(exist_ok=True)
            text = self._heretic(command, folder, may_fail=may_fail)
            found, _ = json.JSONDecoder().raw_decode(text, text.index("\n{") + 1)
            kept.write_text(json.dumps(found), encoding="utf-8")
        read: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return read

    def _heretic(self, command: Sequence[str], folder: Path, *, may_fail: bool = False) -> str:
        """Run a command; returns what it printed, after a line's end."""
        say(f"heretic {command[0]} {Path(command[1]).name if len(command) > 1 else ''}")
        source = {"PYTHONPATH": str(Path(heretic.__file__).parents[1])}
        status, _, _ = run_process([sys.executable, "-m", "heretic", *command], folder, source)
        if status != 0 and not (may_fail and status == 1):
            raise failure(f"heretic {command[0]}", folder / "log")
        return "\n" + (folder / "log").read_text(encoding="utf-8", errors="replace")


def rows(shop: Workshop) -> Iterator[Row]:
    """All faults and controls, one after another."""
    shop.demo()
    yield from _compared(shop)
    yield from _audited(shop)
    yield from _validated(shop)


FAULTS = {
    "late": ("declines after more than 100 tokens", "decline only after"),
    "evasive": ("evades", "evade"),
    "looping": ("loops", "broken"),
}
"""Planted model to its fault, and the words that tell it."""


def _compared(shop: Workshop) -> Iterator[Row]:
    for name, (fault, words) in FAULTS.items():
        yield _row(shop, fault, models.planted(name), words)
    scrambled = shop.made("scrambled", models.scrambled)
    yield _row(shop, "a scrambled layer costs capability", scrambled, "right endings")
    yield _row(shop, "nothing: the unedited model", shop.original, "", is_control=True)


def _row(shop: Workshop, fault: str, judged: Path, words: str, *, is_control: bool = False) -> Row:
    found = shop.compared(judged)
    told = [text for text in found["concerns"] if words in text]
    return Row(fault, "compare", "; ".join(told), is_control)


def _audited(shop: Workshop) -> Iterator[Row]:
    for fault, make in (("card claims other figures", models.doctored),
                        ("a tensor is missing", models.dropped)):  # fmt: skip
        yield _audit_row(shop, fault, shop.made(make.__name__, make))
    yield _audit_row(shop, "nothing: an export as it was saved", shop.export, is_control=True)


def _audit_row(shop: Workshop, fault: str, folder: Path, *, is_control: bool = False) -> Row:
    found = shop.audited(folder)
    told = [finding["text"] for finding in found["findings"] if finding["failed"]]
    return Row(fault, "audit", " ".join(told), is_control)


def _validated(shop: Workshop) -> Iterator[Row]:
    answered = models.answered(shop.original, shop.work)
    near = prompt_file("near_topic_train")
    for fault, topic, is_control in (
        ("the direction is the topic's", answered, False),
        ("nothing: prompts that only share words", near, True),
    ):
        text = shop.validated(topic)["conclusion"]
        told = text if any(words in text for words in CARRIES_TOPIC) else ""
        yield Row(fault, "validate", told, is_control)


def kept(found: Sequence[Row]) -> str:
    """JSON of all rows."""
    return json.dumps([asdict(row) | {"right": row.is_right} for row in found], indent=1) + "\n"
