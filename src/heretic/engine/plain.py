"""The plain way to do the engine's work: one plan at a time, whole prompts, transformers' cache.

It is for models whose forward does not accept the engine's masks, positions or cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from heretic.engine.prefill import Pair
from heretic.method.edits import OutputEdit
from heretic.model.editing import RowEdits
from heretic.model.endings import EncodedItem, plain_endings
from heretic.model.outputs import Endings

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts


class PlainEngine:
    """Does what `Engine` does, but shares nothing between rows or plans."""

    def __init__(
        self,
        model: Model,
        prompts: Mapping[str, Prompts],
        *,
        max_new_tokens: int,
        items: Mapping[str, Sequence[EncodedItem]] | None = None,
    ) -> None:
        self._model, self._prompts, self._max_new_tokens = model, prompts, max_new_tokens
        self._items = items or {}

    def first_tokens(
        self,
        name: str,
        plans: Sequence[Mapping[str, OutputEdit]],
        take: Callable[[Sequence[Pair], Tensor], None],
        on_step: Callable[[int], None] = lambda done: None,
    ) -> None:
        """See `Engine.first_tokens`."""
        prompts, done = self._prompts[name], 0
        for plan, edits in enumerate(plans):
            with RowEdits(self._model.writers, [edits]).installed():
                found = self._model.get_logits_on_device(prompts)
            take([(plan, prompt) for prompt in range(len(prompts))], found)
            done += len(prompts)
            on_step(done)

    def endings(self, name: str, edits: Mapping[str, OutputEdit]) -> Endings:
        """See `Engine.endings`."""
        with RowEdits(self._model.writers, [edits]).installed():
            return plain_endings(self._model, self._items[name])

    def replies(
        self,
        name: str,
        plans: Sequence[Mapping[str, OutputEdit]],
        *,
        decided: Callable[[str], bool] = lambda text: False,
        finished: Callable[[int, int, str], bool] = lambda plan, prompt, text: True,
        on_step: Callable[[int, int, int], None] = lambda tokens, done, total: None,
    ) -> list[list[str | None]]:
        """See `Engine.replies`; a plan is dropped only after the current batch."""
        prompts, size = self._prompts[name], self._model.batch_size
        total, done = len(prompts) * len(plans), 0
        texts: list[list[str | None]] = [[None] * len(prompts) for _ in plans]
        for plan, edits in enumerate(plans):
            for first in range(0, len(prompts), size):

                def tell(tokens: int, left: int, before: int = done) -> None:
                    on_step(tokens, before + left, total)

                with RowEdits(self._model.writers, [edits]).installed():
                    found = self._model.get_responses_batched(
                        prompts[first : first + size],
                        max_new_tokens=self._max_new_tokens,
                        decided=decided,
                        on_step=tell,
                        report=False,
                    )
                done += len(found)
                texts[plan][first : first + len(found)] = found
                going = [finished(plan, first + i, text) for i, text in enumerate(found)]
                if not all(going):
                    done += len(prompts) - first - len(found)
                    break
        return texts
