"""`PromptReader`: prompts in, residuals and logits out.

It does not handle edits: whatever edits the model at the time also changes what is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.resolver import Writer, hidden_size, text_config
from heretic.events import Notice, Reporter, Silent, StageProgress
from heretic.method.directions import RunningMean, winsorize
from heretic.model import capture, loading
from heretic.model.generation import attending_layers, carried_bytes
from heretic.model.limits import limits_of
from heretic.model.loading import Loaded, LoadingOptions
from heretic.model.room import ASSUMED_PROMPT_TOKENS, Sizes, batch_size, fitting_rows
from heretic.model.template_choice import find_template
from heretic.model.templates import ChatRenderer, Messages, messages_for
from heretic.prompts import Prompt
from heretic.records.plan import RowNormalization
from heretic.system import machine, memory

Prompts = Sequence[str | Prompt]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadingOptions):
    """How a model is loaded and prompted. The fields are the settings of the same names."""

    batch_size: int
    max_batch_size: int
    max_response_length: int
    response_prefix: str
    chain_of_thought_skips: tuple[tuple[str, str], ...]
    system_prompt: str | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any]
    row_normalization: RowNormalization


def renderer_of(options: ModelOptions, tokenizer: Any) -> ChatRenderer:
    """What renders prompts for a model.

    Raises:
        ModelError: It has several chat templates and no default, or one that takes no prompt.
        SettingsError: It has no template of the name in the settings.
    """
    return ChatRenderer(
        tokenizer,
        options.chat_template_kwargs,
        template=find_template(options, tokenizer, options.chat_template),
        name=options.model,
    )


class PromptReader:
    """A loaded model with its tokenizer, which gives residuals and logits of prompts.

    Attributes:
        options: How it was loaded and is prompted.
        model: The transformers model.
        tokenizer: Its tokenizer, padding on the left.
        writers: Every residual writer, by layer.
        remarks: What the user should know about how it was loaded, in sentences.
        limits: Which ids and how many positions it can read.
        carried_bytes: Bytes of the states that a row carries on besides keys and values.
        response_prefix: Text put at the start of every reply; found by the pipeline or set.
        batch_size: Prompts per forward pass; halved when memory runs out.
    """

    def __init__(self, options: ModelOptions, loaded: Loaded, reporter: Reporter | None) -> None:
        self.options = options
        self._reporter: Reporter = reporter or Silent()
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.dtype = loaded.dtype
        self.structure = loaded.structure
        self.remarks = loaded.remarks
        self.limits = limits_of(self.model, options.model)
        self.writers: tuple[Writer, ...] = loaded.structure.writers
        self.response_prefix = "" if options.response_prefix == "auto" else options.response_prefix
        self.renderer = renderer_of(options, self.tokenizer)
        self._layers = list(loaded.structure.layers)
        self.carried_bytes = carried_bytes(self.model)
        self.batch_size, self._most_rows = options.batch_size, 0
        if not options.batch_size:
            self.batch_size, self._most_rows = self._automatic_batch_size()
        head = self.model.get_output_embeddings()
        if head is not None:  # None in a few models
            head.register_forward_pre_hook(_contiguous)
        if self.batch_size > 1 and self._padding_matters():
            self.batch_size, self._most_rows = 1, 0
            self.say("Prompts are run one at a time: padding changes this model's outputs")

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, to which input ids are moved."""
        device = self.model.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return hidden_size(self.model)

    def get_layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(self._layers)

    def get_abliterable_components(self) -> list[str]:
        """Names of the components, e.g. `attn.o_proj`, sorted."""
        return sorted({writer.component for writer in self.writers})

    # --- batches ---------------------------------------------------------------------------

    def rows_together(self, plans: int) -> int:
        """Most rows that this number of plans may decode together.

        On an accelerator a step takes as long with many rows as with few, so each plan adds a batch
        as long as memory suffices. On a CPU more rows only take longer.
        """
        return max(self.batch_size, min(plans * self.batch_size, self._most_rows))

    def _automatic_batch_size(self) -> tuple[int, int]:
        """Prompts per pass, and the most rows that several plans may decode together (0: no more).

        Both follow from total memory and weights, never from timing, so equal runs stay equal.
        """
        tokens = ASSUMED_PROMPT_TOKENS + self.options.max_response_length
        fitting = fitting_rows(self.sizes(), machine.total_memory(self.device), tokens)
        size = batch_size(fitting, self.options.max_batch_size)
        return size, 0 if self.device.type == "cpu" else fitting

    def sizes(self) -> Sizes:
        """What the memory of a search depends on; of the weights, those on `device`."""
        here = [one for one in self.model.parameters() if one.device == self.device]
        return Sizes(
            weights=sum(one.numel() * one.element_size() for one in here),
            layers=self.n_layers,
            hidden=self.hidden_size,
            vocabulary=text_config(self.model).vocab_size,
            cache_per_token=self.cache_bytes_per_token(),
            carried=self.carried_bytes,
            itemsize=self.model.dtype.itemsize,
        )

    def _padding_matters(self) -> bool:
        """Whether a padded row gives other logits than the same row alone (as RWKV does)."""
        texts = [self.prompt_text(prompt) for prompt in ("Hi", loading.CHECKED_TEXT)]
        short, long = self.renderer.token_ids(texts)
        self.limits.check_ids([long], self.tokenizer)
        most = self.limits.positions
        short, long = short[-(most or len(short)) :], long[-(most or len(long)) :]
        alone, padded = self.logits_after([short]), self.logits_after([short, long])[:1]
        return capture.divergence(alone, padded) > capture.TOLERANCES[self.dtype.itemsize]

    def cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return machine.cache_bytes_per_token(
            text_config(self.model),
            attending_layers(self.model, self.n_layers),
            self.hidden_size,
            self.model.dtype.itemsize,
        )

    def notify_halved(self, size: int) -> None:
        """Use this batch size from now on, since memory ran out, and tell the user."""
        self.batch_size = size
        self.say(f"Out of memory: batch size is now {size}")

    def notify_fewer_together(self, rows: int) -> None:
        """Limit `rows_together` to this many rows, since memory ran out, and tell the user."""
        self._most_rows = min(self._most_rows, rows)
        if rows < self.batch_size:
            self.notify_halved(rows)
        else:
            self.say(f"Out of memory: plans now decode at most {rows} rows together")

    def take_up(self, batch_size: int) -> None:
        """Use an earlier process's batch size; a halved one leaves no memory for more rows."""
        if batch_size < self.batch_size:
            self._most_rows = 0
        self.batch_size = batch_size

    def say(self, text: str) -> None:
        """Warn the user about how this model is run."""
        self._reporter.emit(Notice(text, "warning"))

    # --- prompts ---------------------------------------------------------------------------

    def get_chat(self, prompt: str | Prompt) -> Messages:
        """The conversation a prompt stands for, with its system prompt."""
        return messages_for(prompt, self.options.system_prompt)

    def prompt_text(self, prompt: str | Prompt) -> str:
        """The text that the model continues: template, prompt and response prefix."""
        return self.renderer.text(self.get_chat(prompt)) + self.response_prefix

    def encode_rows(self, prompts: Prompts, reply: int = 0) -> list[list[int]]:
        """Token ids of each prompt, template and response prefix included.

        Args:
            reply: New tokens that are to follow.

        Raises:
            ModelError: The template or a prompt has a token without an embedding.
            PromptError: A prompt, with its reply, has more tokens than the model has positions.
        """
        if not prompts:  # tokenizers fail on no texts at all
            return []
        rows = self.renderer.token_ids([self.prompt_text(prompt) for prompt in prompts])
        self.limits.check_ids(rows, self.tokenizer)
        texts = [prompt if isinstance(prompt, str) else prompt.user for prompt in prompts]
        self.limits.check_lengths(rows, texts, reply)
        return rows

    def encode_texts(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """Token ids of plain texts, each cut to `most` tokens and to the model's positions.

        Raises:
            ModelError: A text has a token without an embedding.
        """
        most = min(most, self.limits.positions or most)
        rows = [row[:most] for row in self.renderer.token_ids(texts)]
        self.limits.check_ids(rows, self.tokenizer)
        return rows

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of a reply's token ids."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text: its first `count` tokens."""
        return self.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"][:count])

    @property
    def reasons(self) -> bool:
        """Whether the chat template knows of reasoning before the answer."""
        return self.renderer.reasons

    @contextmanager
    def thinking(self) -> Iterator[None]:
        """Let the model reason before it answers, while the context lasts."""
        before = self.renderer, self.response_prefix
        self.renderer, self.response_prefix = before[0].with_variables(enable_thinking=True), ""
        try:
            yield
        finally:
            self.renderer, self.response_prefix = before

    def _encode(self, prompts: Prompts, reply: int = 0) -> Any:
        return self.renderer.padded(self.encode_rows(prompts, reply)).to(self.device)

    def _batched(
        self, prompts: Prompts, compute: Callable[[Prompts], Sequence[Any]], report: bool = True
    ) -> list[Any]:
        """Apply `compute` to batches of prompts of similar length; results keep the given order."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(self.prompt_text(prompts[i])), i))
        results: list[Any] = [None] * len(prompts)

        def work(part: slice) -> None:
            rows = order[part]
            for row, result in zip(rows, compute([prompts[i] for i in rows]), strict=True):
                results[row] = result
            if report:
                self._reporter.emit(StageProgress(min(part.stop, len(prompts)), len(prompts)))

        memory.halving(len(prompts), self.batch_size, work, self.notify_halved)
        return results

    # --- reading ---------------------------------------------------------------------------

    def get_residuals(self, prompts: Prompts) -> Tensor:
        """Residuals at the last prompt position, float32 [prompts, layers + 1, hidden]."""
        batch = self._encode(prompts)
        return capture.last_residuals(
            self.model, self._layers, batch["input_ids"], batch["attention_mask"]
        )

    def get_projections(self, ids: Sequence[int], directions: Tensor) -> Tensor:
        """How far the residual of every token lies along the direction of every layer.

        Args:
            ids: Tokens of one text, such as a row of `encode_rows`.
            directions: Unit or zero vectors, [layers + 1, hidden]; row l + 1 belongs to layer l.

        Returns:
            float32 [layers + 1, tokens], in the units of the residual stream.

        Raises:
            ValueError: The directions do not fit the model, or there is no token.
        """
        if directions.shape != (self.n_layers + 1, self.hidden_size):
            raise ValueError(
                f"directions of shape {tuple(directions.shape)} do not fit a model with "
                f"{self.n_layers} layers of width {self.hidden_size}"
            )
        if not ids:
            raise ValueError("a text without tokens has no residuals")
        row = torch.tensor([list(ids)], device=self.device)
        everything = torch.ones_like(row)
        return capture.projections(self.model, self._layers, row, everything, directions)[0]

    def get_residuals_batched(self, prompts: Prompts) -> Tensor:
        """`get_residuals` in batches that fit."""
        return torch.stack(self._batched(prompts, self.get_residuals))  # type: ignore[arg-type]

    def get_residual_means(
        self,
        prompts: Prompts,
        winsorization_quantile: float = 1.0,
        seen: Callable[[Prompts, Tensor], None] | None = None,
    ) -> Tensor:
        """Mean residuals, float64 [layers + 1, hidden], without keeping those of each prompt.

        Args:
            winsorization_quantile: See `heretic.method.directions.winsorize`.
            seen: Called with each batch of prompts, longest prompts first, and their residuals,
                float32 [prompts, layers + 1, hidden].
        """
        mean = RunningMean()

        def add(rows: Prompts) -> list[None]:
            residuals = self.get_residuals(rows)
            mean.add(winsorize(residuals, winsorization_quantile))
            if seen is not None:
                seen(rows, residuals)
            return [None] * len(rows)

        self._batched(prompts, add)
        return mean.result()

    def get_logits(self, prompts: Prompts) -> Tensor:
        """Raw logits of the first generated token, float32 [prompts, vocabulary], on the CPU."""
        return self.logits_after(self.encode_rows(prompts))

    def get_logits_batched(self, prompts: Prompts, report: bool = True) -> Tensor:
        """`get_logits` in batches that fit."""
        return torch.stack(self._batched(prompts, self.get_logits, report))  # type: ignore[arg-type]

    def get_logits_on_device(self, prompts: Prompts) -> Tensor:
        """`get_logits_batched`, left on the model's device."""

        def compute(some: Prompts) -> Tensor:
            return self._last_logits(self.encode_rows(some))

        return torch.stack(self._batched(prompts, compute, report=False))  # type: ignore[arg-type]

    def logits_after(self, rows: Sequence[list[int]]) -> Tensor:
        """Raw logits after rows of token ids, float32 [rows, vocabulary], on the CPU."""
        return self._last_logits(rows).cpu()

    def _last_logits(self, rows: Sequence[list[int]]) -> Tensor:
        batch = self.renderer.padded(rows).to(self.device)
        return capture.last_logits(self.model, batch["input_ids"], batch["attention_mask"])

    def tail_logits(self, rows: Sequence[list[int]], positions: int) -> Tensor:
        """Raw logits after each of the last positions of rows of token ids.

        Returns:
            [rows, positions, vocabulary], in the model's dtype and on its device. Values at
            positions before a row's first token have no meaning.
        """
        batch = self.renderer.padded(rows).to(self.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found = capture.tail_logits(self.model, ids, mask, positions)
        return nn.functional.pad(found, (0, 0, positions - found.shape[1], 0))


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the inputs of the output head to contiguous memory.

    If they are a slice of all positions, torch's CPU matmul copies the vocabulary matrix for every
    row: 5 s and 5 GB for 100 rows and 49,152 tokens, where 0.01 s is enough. `contiguous` does not
    copy a single row, which it takes for contiguous whatever its strides.
    """
    return tuple(argument.clone(memory_format=torch.contiguous_format) for argument in args)
