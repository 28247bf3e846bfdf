"""`Model`: a loaded model that can be edited and can generate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heretic.architectures.resolver import text_config
from heretic.errors import PromptError, RunError
from heretic.events import Reporter, Silent
from heretic.method.edits import OutputEdit
from heretic.method.fits import Fit
from heretic.model import generation, loading
from heretic.model.editing import EditFactory, RowEdits, WeightEditor
from heretic.model.fits import Fits
from heretic.model.masks import Masks, as_forwards_take, is_of_recurrence
from heretic.model.reading import ModelOptions, PromptReader, Prompts
from heretic.model.rendering import check_message
from heretic.model.steering import Removal, Steering, StreamChange, check_strength
from heretic.model.streaming import Stream
from heretic.model.templates import Messages
from heretic.records.plan import Plan
from heretic.system import machine

LONGEST_REPLY = 1024
"""Most new tokens of a streamed reply; fewer if the model has fewer positions left."""


class Model(PromptReader):
    """A language model, its tokenizer and its residual writers; see `PromptReader`."""

    def __init__(self, options: ModelOptions, reporter: Reporter | None = None) -> None:
        """Load `options.model`.

        Raises:
            ModelError: See `heretic.model.loading.load`.
        """
        loaded = loading.load(options, reporter or Silent())
        self.processor: Any = loading.load_processor(options, loaded.model.config)
        super().__init__(options, loaded, reporter)
        self._factory = EditFactory(self.writers)
        self._weights = WeightEditor(self.writers)
        self._said: set[str] = set()  # warnings about replies
        # One per open `edited`, `steered` or `without`: 0 is its plan or vectors, 1 no change.
        self._hooked: list[RowEdits | StreamChange] = []

    # --- edits -----------------------------------------------------------------------------

    @property
    def fits(self) -> Fits:
        """The fits that plans may name."""
        return self._factory.fits

    def add_fits(self, fits: Iterable[Fit]) -> None:
        """Make plans that name these fits possible.

        Raises:
            RunError: A fit is of another model.
        """
        for fit in fits:
            layers, hidden = fit.write.shape[2], fit.write.shape[4]
            if (layers, hidden) != (self.n_layers, self.hidden_size):
                raise RunError(
                    f"The fit {fit.digest} is of a model with {layers} layers of width {hidden}; "
                    f"this one has {self.n_layers} of width {self.hidden_size}."
                )
            self.fits.add(fit)

    def plan_edits(
        self, plan: Plan, directions: Tensor, strength: float = 1.0
    ) -> dict[str, OutputEdit]:
        """See `EditFactory.edits`."""
        return self._factory.edits(plan, directions, strength)

    @contextmanager
    def edited(self, plan: Plan, directions: Tensor, strength: float = 1.0) -> Iterator[None]:
        """Edit the writers' outputs while the context lasts; no weight is changed.

        Args:
            strength: Factor of every ablation weight, of an ablation and of a fit: 1 is the plan's
                edit, 0 the original, bit for bit. With `none` and `pre` the change of an output is
                proportional to it; `full` keeps the row norms at every strength.

        Raises:
            ValueError: The strength is not finite; or see `EditFactory.edits`.
        """
        edits = self.plan_edits(plan, directions, check_strength(strength))
        rows = RowEdits(self.writers, [edits, {}])
        rows.use(0)
        with self._in_force(rows):
            yield

    @contextmanager
    def steered(self, vectors: Tensor, strength: float = 1.0) -> Iterator[None]:
        """Add strength * vectors[l + 1] to layer l's output, at every position; see `Steering`.

        No weight is changed. A strength of 0 is the original, bit for bit.

        Args:
            vectors: [layers + 1, hidden], such as directions times the lengths of their mean
                differences; row 0 is zero.

        Raises:
            ValueError: The vectors do not fit the model, or a number is not finite.
            UnsupportedModelError: Layers carry several residual streams.
        """
        self._check_width(vectors)
        with self._in_force(Steering(self._layers, check_strength(strength) * vectors)):
            yield

    @contextmanager
    def without(self, directions: Tensor) -> Iterator[None]:
        """Take directions[l + 1] out of layer l's output, at every position; see `Removal`.

        What later layers write along it stays. No weight is changed.

        Args:
            directions: [layers + 1, hidden], of any length; row 0 is zero, and a row of zeros
                leaves its layer alone.

        Raises:
            ValueError: The directions do not fit the model, or a number is not finite.
            UnsupportedModelError: Layers carry several residual streams.
        """
        self._check_width(directions)
        with self._in_force(Removal(self._layers, directions)):
            yield

    def _check_width(self, vectors: Tensor) -> None:
        if vectors.shape[-1] != self.hidden_size:
            raise ValueError(f"vectors have width {vectors.shape[-1]}, not {self.hidden_size}")

    @contextmanager
    def _in_force(self, hooked: RowEdits | StreamChange) -> Iterator[None]:
        self._hooked.append(hooked)
        try:
            with hooked.installed():
                yield
        finally:
            self._hooked.remove(hooked)

    def apply(self, plan: Plan, directions: Tensor) -> None:
        """Edit the weights themselves, keeping the originals for `restore`.

        Raises:
            ModelError: The model is quantised.
        """
        self._weights.apply(self.plan_edits(plan, directions))
        self._factory.forget()

    def restore(self) -> None:
        """Bring the original weights back, bit for bit."""
        self._weights.restore()
        self._factory.forget()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Act as the original while the context lasts, also inside `edited` and its like."""
        self._factory.forget()
        hooked, self._hooked = self._hooked, []
        for rows in hooked:
            rows.use(1)
        try:
            with self._weights.unedited():
                yield
        finally:
            for rows in hooked:
                rows.use(0)
            self._hooked = hooked
            self._factory.forget()

    def unload(self) -> None:
        """Free the weights' memory for another model; this one cannot be used afterwards."""
        self.model = None
        self.writers, self._layers = (), []
        self.structure = replace(self.structure, layers=(), writers=())
        self._factory, self._weights = EditFactory(()), WeightEditor(())
        machine.free_memory()

    @property
    def is_edited(self) -> bool:
        """Whether the weights differ from the original's."""
        return self._weights.is_edited

    @property
    def is_original(self) -> bool:
        """Whether it acts as loaded: no weight differs, and nothing is hooked (`is_hooked`)."""
        return not self.is_edited and not self._hooked

    @property
    def is_hooked(self) -> bool:
        """Whether an `edited`, a `steered` or a `without` is in force."""
        return bool(self._hooked)

    # --- generating ------------------------------------------------------------------------

    @torch.inference_mode()
    def step(
        self, tokens: Tensor, positions: Tensor, masks: Masks, cache: Any, kept: int = 1
    ) -> Tensor:
        """One forward pass with a given cache.

        Args:
            tokens: int64 [rows, tokens].
            positions: int64 [rows, tokens].
            masks: See `Masks`.
            cache: A transformers `Cache`, which takes the new keys and values.
            kept: Number of last tokens after which logits are returned.

        Returns:
            Raw logits after these tokens, [rows, kept, vocabulary], in the model's dtype.
        """
        device = self.device
        # A model without attention has no positions.
        places = {} if is_of_recurrence(masks) else {"position_ids": positions.to(device)}
        logits: Tensor = self.model(
            input_ids=tokens.to(device),
            attention_mask=as_forwards_take(masks, device, self.dtype),
            use_cache=True,
            logits_to_keep=kept,
            **places,
            **{generation.cache_argument(self.model) or "cache": cache},
        ).logits
        return logits[:, -kept:]

    def get_responses(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | None = None,
        decided: Callable[[str], bool] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        skip_special_tokens: bool = True,
    ) -> list[str]:
        """Greedy replies, without the response prefix.

        Args:
            max_new_tokens: Defaults to the setting `max_response_length`.
            decided: Called with each growing reply; True ends that reply.
            on_step: Called after every step with (tokens just made, replies done so far).
        """
        ids = self.get_reply_ids(
            prompts,
            max_new_tokens or self.options.max_response_length,
            decide=None if decided is None else self._decider(decided),
            on_step=on_step,
        )
        return self._decode(ids, skip_special_tokens)

    def get_responses_batched(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | None = None,
        decided: Callable[[str], bool] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        skip_special_tokens: bool = True,
        report: bool = True,
    ) -> list[str]:
        """`get_responses` in batches that fit."""

        def compute(rows: Prompts) -> list[str]:
            return self.get_responses(
                rows,
                max_new_tokens=max_new_tokens,
                decided=decided,
                on_step=on_step,
                skip_special_tokens=skip_special_tokens,
            )

        return self._batched(prompts, compute, report)

    def get_reply_ids(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        decide: generation.Decide | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Token ids of greedy replies, without end tokens."""
        batch = self._encode(prompts, max_new_tokens)
        return generation.greedy(
            self.model,
            batch["input_ids"],
            batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            end=generation.end_tokens(self.model, self.tokenizer),
            decide=decide,
            on_step=on_step,
        )

    def get_reply_ids_batched(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """`get_reply_ids` in batches that fit."""
        return self._batched(
            prompts, lambda rows: self.get_reply_ids(rows, max_new_tokens), report=False
        )

    def _decode(self, ids: Sequence[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in ids]

    def _decider(self, decided: Callable[[str], bool]) -> generation.Decide:
        return lambda rows: [decided(text) for text in self._decode(rows)]

    def stream_reply(self, messages: Messages, max_new_tokens: int | None = None) -> Generator[str]:
        """Yield the reply to a conversation in pieces while it is generated.

        Closing the iterator stops the generation. Sampling follows the model's generation config,
        as far as a reply can be streamed with it; see `heretic.model.streaming`.

        Args:
            max_new_tokens: Defaults to `LONGEST_REPLY`; fewer if the model's positions leave fewer.

        Raises:
            PromptError: The conversation is too long for the model, or the template drops words.
            ModelError: The template fails, a token has no embedding, or memory runs out.
        """
        text = self.renderer.text(messages) + self.response_prefix
        check_message(self, messages[-1]["content"], text)
        rows = self.renderer.token_ids([text])
        self.limits.check_ids(rows, self.tokenizer)
        self.limits.check_lengths(rows, [messages[-1]["content"]], reply=1)
        batch = self.renderer.padded(rows).to(self.device)
        limit = min(max_new_tokens or LONGEST_REPLY, self._room(len(rows[0])))
        yield from Stream(self.model, self.tokenizer, batch, limit, self._say_once)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _room(self, used: int) -> int:
        """Most new tokens of a reply after `used` tokens, by the positions the model is made for.

        Raises:
            PromptError: There are none.
        """
        positions = getattr(text_config(self.model), "max_position_embeddings", None)
        if not isinstance(positions, int) or positions < 1:
            return LONGEST_REPLY
        if used >= positions:
            raise PromptError(
                f"The conversation takes {used} tokens, and {self.options.model} is made for "
                f"{positions}.",
                remedy="Start a new one (/reset).",
            )
        return min(LONGEST_REPLY, positions - used)
