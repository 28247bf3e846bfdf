"""What an edited model still can: a hundred short questions, each with one right answer of four.

    python -m benchmarks.search_parts.capability FOLDER

Nothing is generated: a question counts if the right answer is likelier than the three wrong ones,
as a reply to the question in the model's chat template. The questions are about general knowledge,
sums, language and common sense: those items of the scorer `capability` that are questions. (That
scorer reads them, and all its other items, as plain text.) With so few, accuracy is known to some 4
of 100; the share of the right answer in the probability of all four moves earlier, and is noted
too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from heretic.config import Settings
from heretic.model.core import Model
from heretic.model.endings import EncodedItem, plain_endings
from heretic.model.reading import ModelOptions
from heretic.records.options import options_of
from heretic.scorers.capability import ITEMS

BEFORE, AFTER = "Question: ", "\nAnswer:"
"""What the contexts of the set's questions begin and end with."""

TASK = "Reply with the answer only."


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its answers; no answer is the beginning of another."""

    kind: str
    question: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers, the right one first."""
        return (self.answer, *self.wrong)


@dataclass(frozen=True, slots=True)
class Capability:
    """What a model knew.

    Attributes:
        shares: For each item the probability of the right answer over that of all four; in the
            order of the items.
        right: For each item whether no wrong answer is as likely as the right one.
    """

    shares: tuple[float, ...]
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """Share of items that the model gets right."""
        return sum(self.right) / len(self.right)

    @property
    def certainty(self) -> float:
        """Mean share of the right answer."""
        return sum(self.shares) / len(self.shares)


def items() -> list[Item]:
    """The questions, in the order of the set."""
    rows = [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]
    return [_item(**row) for row in rows if row["context"].startswith(BEFORE)]


def _item(kind: str, context: str, endings: Sequence[str], right: int) -> Item:
    wrong = tuple(ending for ending in endings if ending != endings[right])
    return Item(kind, context.removeprefix(BEFORE).removesuffix(AFTER), endings[right], wrong)


def capability(model: Model, asked: Sequence[Item]) -> Capability:
    """Score a model as it acts now, with the edits that are in force.

    Raises:
        ModelError: An item or its template has a token without an embedding, or memory runs out.
        PromptError: An item is longer than the model's positions.
    """
    questions = [f"{item.question} {TASK}" for item in asked]
    answers = [model.tokenizer(item.choices, add_special_tokens=False).input_ids for item in asked]
    longest = max(len(ids) for choices in answers for ids in choices)
    prompts = model.encode_rows(questions, longest)
    pairs = zip(prompts, answers, strict=True)
    found = plain_endings(model, [EncodedItem(*pair) for pair in pairs]).logprobs
    shares = found.softmax(dim=-1)[:, 0]
    right = found[:, 0] > found[:, 1:].max(dim=-1).values
    return Capability(tuple(shares.tolist()), tuple(right.tolist()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what a model's folder scores, in all and by kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="folder of a model")
    asked = items()
    settings = Settings(model=parser.parse_args(arguments).folder)
    result = capability(Model(options_of(ModelOptions, settings)), asked)
    by_kind = {
        kind: sum(
            right for item, right in zip(asked, result.right, strict=True) if item.kind == kind
        )
        for kind in sorted({item.kind for item in asked})
    }
    print(json.dumps({"accuracy": result.accuracy, "certainty": result.certainty, **by_kind}))


if __name__ == "__main__":
    main()
