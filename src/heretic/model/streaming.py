"""A reply in pieces, while it is generated in another thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Event as Flag
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from heretic.errors import ModelError
from heretic.model.failures import reason
from heretic.model.generation import SAMPLING, TOKENS, following
from heretic.system import machine
from heretic.system.memory import ran_out


class Stream:
    """One reply; iterate over it once.

    Sampling, penalties and stop strings are those of the model's generation config. What cannot be
    streamed, such as beams, is left out. A configuration that transformers does not take gives way
    to the most likely tokens.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch: Any, limit: int, say: Callable[[str], None]
    ) -> None:
        """Store the arguments; generating begins with the iteration.

        Args:
            model: The transformers model.
            batch: `input_ids` and `attention_mask` of one row, on the model's device.
            limit: Most new tokens.
            say: Takes a warning.
        """
        from transformers import TextIteratorStreamer

        self._model, self._tokenizer, self._say = model, tokenizer, say
        self._batch, self._limit = batch, limit
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop, self._begun = Flag(), Flag()

    def __iter__(self) -> Generator[str]:
        """The pieces. Closing the iterator stops the generation.

        Raises:
            ModelError: Memory ran out.
        """
        failures: list[BaseException] = []

        def work() -> None:
            try:
                self._generate()
            except BaseException as error:  # handed to the reader below, which raises it
                failures.append(error)
                self._streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from self._streamer
        finally:
            self._stop.set()
            thread.join()
        if failures:
            raise self._told(failures[0])

    def _told(self, error: BaseException) -> BaseException:
        if not ran_out(error):
            return error
        machine.free_memory()
        told = ModelError(
            f"Out of memory after {self._batch['input_ids'].shape[1]} tokens of conversation.",
            remedy="Start a new one (/reset); shorter ones take less memory.",
        )
        told.__cause__ = error
        return told

    def _generate(self) -> None:
        try:
            with following(self._model, SAMPLING) as config:
                if config.temperature is not None and config.temperature <= 0:
                    config.do_sample = False  # what others mean by it
                self._run(tokenizer=self._tokenizer if config.stop_strings else None)
        except (ValueError, TypeError, RuntimeError) as error:
            if self._begun.is_set() or ran_out(error):
                raise
            why = reason(error)
        else:
            return
        # Before the first token: what the file of the model says cannot be done.
        self._streamer.next_tokens_are_prompt = True
        self._say(f"The generation config cannot be followed, so replies are greedy: {why}")
        with following(self._model, TOKENS):
            self._run()

    def _run(self, **arguments: Any) -> None:
        from transformers import StoppingCriteriaList

        given = {name: value for name, value in arguments.items() if value is not None}
        with torch.inference_mode():
            self._model.generate(
                **self._batch,
                **given,
                streamer=self._streamer,
                max_new_tokens=self._limit,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([self._stops]),
            )

    def _stops(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._begun.set()
        return torch.full((ids.shape[0],), self._stop.is_set(), dtype=torch.bool, device=ids.device)
