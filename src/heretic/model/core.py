"""`Model`: a loaded model with everything the stages ask of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event as Flag
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures import Writer
from heretic.architectures.resolver import hidden_size, text_config
from heretic.config.settings import Settings
from heretic.events import Notice, Reporter, Silent, StageProgress
from heretic.method.directions import RunningMean, winsorize
from heretic.method.edits import OutputEdit
from heretic.model import capture, generation, loading
from heretic.model.editing import EditFactory, RowEdits, WeightEditor
from heretic.model.templates import ChatRenderer, Messages, messages_for
from heretic.prompts import Prompt
from heretic.records.plan import AbliterationParameters, DirectionScope, Plan
from heretic.system import machine, memory

Prompts = Sequence[str | Prompt]

LONGEST_REPLY = 1024
"""New tokens of a streamed reply, where the model has that many positions left."""

ASSUMED_PROMPT_TOKENS = 256
"""Prompt length for which the automatic batch size leaves room."""


class Model:
    """A language model, its tokenizer and its residual writers.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer, padding on the left.
        writers: Every residual writer, by layer.
        response_prefix: Text put at the start of every reply; found by the pipeline or set.
        batch_size: Prompts per forward pass; halved when memory runs out.
    """

    def __init__(self, settings: Settings, reporter: Reporter | None = None) -> None:
        """Load `settings.model`.

        Raises:
            ModelError: See `heretic.model.loading.load`.
        """
        self.settings = settings
        self._reporter: Reporter = reporter or Silent()
        loaded = loading.load(settings, self._reporter)
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.processor: Any = loading.load_processor(settings, self.model.config)
        self.dtype = loaded.dtype
        self.structure = loaded.structure
        self.writers: tuple[Writer, ...] = loaded.structure.writers
        self.response_prefix = (
            "" if settings.response_prefix == "auto" else settings.response_prefix
        )
        self.renderer = ChatRenderer(self.tokenizer, settings.chat_template_kwargs)
        self._layers = list(loaded.structure.layers)
        self.batch_size, self._most_rows = settings.batch_size, 0
        if not settings.batch_size:
            self.batch_size, self._most_rows = self._automatic_batch_size()
        head = self.model.get_output_embeddings()
        if head is not None:  # a few models have it elsewhere
            head.register_forward_pre_hook(_contiguous)
        if self.batch_size > 1 and self._padding_matters():
            self.batch_size, self._most_rows = 1, 0
            self.say("Prompts are run one at a time: padding changes what this model puts out")
        self._factory = EditFactory(self.writers)
        self._weights = WeightEditor(self.writers)
        self._hooked: list[RowEdits] = []  # of the contexts of `edited`: the plan, and nothing

    @property
    def device(self) -> torch.device:
        """Where input ids go."""
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

    def rows_together(self, plans: int) -> int:
        """Rows that so many plans may decode together.

        On an accelerator a step takes as long with many rows as with few, so that each plan brings
        a batch of its own as long as memory lasts; on a CPU more rows only take longer.
        """
        return max(self.batch_size, min(plans * self.batch_size, self._most_rows))

    def _automatic_batch_size(self) -> tuple[int, int]:
        """Prompts per pass, and rows that several plans may decode together at most (0: as many).

        From the machine's total memory, never from timing, so that equal runs stay equal.
        """
        tokens = ASSUMED_PROMPT_TOKENS + self.settings.max_response_length
        cache = self.cache_bytes_per_token() * tokens
        row = cache + 8 * text_config(self.model).vocab_size + 16 * tokens * self.hidden_size
        fitting = max(1, machine.total_memory(self.device) // 4 // row)
        size = min(self.settings.max_batch_size, 2 ** (fitting.bit_length() - 1))
        return size, 0 if self.device.type == "cpu" else fitting

    def _padding_matters(self) -> bool:
        """Whether a padded row gives other logits than the same row alone (as RWKV does)."""
        short, long = self.encode_rows(["Hi", loading.CHECKED_TEXT])
        alone, padded = self.logits_after([short]), self.logits_after([short, long])[:1]
        return capture.divergence(alone, padded) > capture.TOLERANCES[self.dtype.itemsize]

    # --- structure -------------------------------------------------------------------------

    def get_layers(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(self._layers)

    def get_layer_matrices(self, layer_index: int) -> dict[str, list[Tensor]]:
        """The weights that write the residual stream in a layer, by component, [d_out, d_in]."""
        matrices: dict[str, list[Tensor]] = {}
        for writer in self.writers:
            if writer.layer == layer_index:
                matrices.setdefault(writer.component, []).append(writer.stored())
        return matrices

    def get_abliterable_components(self) -> list[str]:
        """Names of the components, e.g. `attn.o_proj`, sorted."""
        return sorted({writer.component for writer in self.writers})

    # --- edits -----------------------------------------------------------------------------

    def plan_edits(self, plan: Plan, directions: Tensor) -> dict[str, OutputEdit]:
        """The plan's edits by writer name; writers it leaves alone are not in it."""
        return self._factory.edits(plan, directions)

    @contextmanager
    def edited(self, plan: Plan, directions: Tensor) -> Iterator[None]:
        """Act as if edited while the context lasts; no weight is touched."""
        rows = RowEdits(self.writers, [self.plan_edits(plan, directions), {}])
        rows.use(0)
        self._hooked.append(rows)
        try:
            with rows.installed():
                yield
        finally:
            self._hooked.remove(rows)

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

    def reload_model(self) -> None:
        """Bring the original model back."""
        self.restore()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The original while the context lasts, also within `edited`."""
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
        """Let go of the weights, so that another model can have the memory; the end of this one."""
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
        """Whether it acts as it was loaded: no weight differs, and it is not within `edited`."""
        return not self.is_edited and not self._hooked

    def abliterate(
        self,
        refusal_directions: Tensor,
        direction_index: float | None,
        parameters: Mapping[str, AbliterationParameters],
        *,
        direction_scope: DirectionScope | None = None,
    ) -> None:
        """Edit the weights, so that `model.save_pretrained` saves the edited model.

        Args:
            refusal_directions: [layers + 1, hidden]; row l + 1 belongs to layer l.
            direction_index: Fractional layer index to take one direction from for all layers; None
                gives each layer its own.
            parameters: Component, or its short name `attn` / `mlp`, to kernel.
            direction_scope: `mean` for the mean direction; by default follows `direction_index`.
        """
        plan = Plan.create(
            direction_scope=direction_scope
            or ("per layer" if direction_index is None else "global"),
            direction_index=direction_index,
            kernels=parameters,
            row_normalization=self.settings.row_normalization,
        )
        unknown = {name for name, _ in plan.kernels} - set(self.get_abliterable_components())
        if unknown:
            raise ValueError(
                f"unknown components {sorted(unknown)}; this model has "
                f"{self.get_abliterable_components()}"
            )
        self.apply(plan, refusal_directions)

    # --- prompts ---------------------------------------------------------------------------

    def get_chat(self, prompt: str | Prompt) -> Messages:
        """The conversation a prompt stands for, with its system prompt."""
        return messages_for(prompt, self.settings.system_prompt)

    def prompt_text(self, prompt: str | Prompt) -> str:
        """The text that the model continues: template, prompt and response prefix."""
        return self.renderer.text(self.get_chat(prompt)) + self.response_prefix

    def _encode(self, prompts: Prompts) -> Any:
        return self.renderer.padded(self.encode_rows(prompts)).to(self.device)

    def _batched(
        self, prompts: Prompts, compute: Callable[[Prompts], Sequence[Any]], report: bool = True
    ) -> list[Any]:
        """`compute` over batches of prompts of similar length; results in the given order."""
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

    def encode_rows(self, prompts: Prompts) -> list[list[int]]:
        """Token ids of each prompt, template and response prefix included."""
        return self.renderer.token_ids([self.prompt_text(prompt) for prompt in prompts])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of a reply's token ids."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def notify_halved(self, size: int) -> None:
        """Take note of the batch size that is left after running out of memory."""
        self.batch_size = size
        self.say(f"Out of memory: batch size is now {size}")

    def notify_fewer_together(self, rows: int) -> None:
        """Take note of how many rows `rows_together` may be after running out of memory."""
        self._most_rows = min(self._most_rows, rows)
        if rows < self.batch_size:
            self.notify_halved(rows)
        else:
            self.say(f"Out of memory: plans share {rows} rows now")

    def take_up(self, batch_size: int) -> None:
        """Go on with the batch size of an earlier process; a halved one leaves no room for more."""
        if batch_size < self.batch_size:
            self._most_rows = 0
        self.batch_size = batch_size

    def say(self, text: str) -> None:
        """Tell the user what ought to be known about running this model."""
        self._reporter.emit(Notice(text, "warning"))

    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        config, itemsize = text_config(self.model), self.model.dtype.itemsize
        return machine.cache_bytes_per_token(config, self.n_layers, self.hidden_size, itemsize)

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """One forward pass over a ready-made cache.

        Args:
            tokens: int64 [rows, tokens].
            positions: The same shape.
            mask: bool [rows, tokens, columns]; True where a token sees a column of the cache.
            cache: A transformers cache.

        Returns:
            Raw logits after the last token, [rows, vocabulary], in the model's dtype.
        """
        device = self.device
        unseen = ~mask.to(device).unsqueeze(1)
        added = torch.zeros_like(unseen, dtype=self.dtype)  # what every kind of attention takes
        added.masked_fill_(unseen, torch.finfo(self.dtype).min)
        logits: Tensor = self.model(
            input_ids=tokens.to(device),
            position_ids=positions.to(device),
            attention_mask=added,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    # --- reading ---------------------------------------------------------------------------

    def get_residuals(self, prompts: Prompts) -> Tensor:
        """Residuals at the last prompt position, float32 [prompts, layers + 1, hidden]."""
        batch = self._encode(prompts)
        return capture.last_residuals(
            self.model, self._layers, batch["input_ids"], batch["attention_mask"]
        )

    def get_residuals_batched(self, prompts: Prompts) -> Tensor:
        """`get_residuals` in batches that fit."""
        return torch.stack(self._batched(prompts, self.get_residuals))  # type: ignore[arg-type]

    def get_residual_means(self, prompts: Prompts, winsorization_quantile: float = 1.0) -> Tensor:
        """Mean residuals, float64 [layers + 1, hidden], without keeping the prompts' own."""
        mean = RunningMean()

        def add(rows: Prompts) -> list[None]:
            mean.add(winsorize(self.get_residuals(rows), winsorization_quantile))
            return [None] * len(rows)

        self._batched(prompts, add)
        return mean.result()

    def get_logits(self, prompts: Prompts) -> Tensor:
        """Raw logits of the first generated token, float32 [prompts, vocabulary], on the CPU."""
        return self.logits_after(self.encode_rows(prompts))

    def logits_after(self, rows: Sequence[list[int]]) -> Tensor:
        """Raw logits after rows of token ids, float32 [rows, vocabulary], on the CPU."""
        batch = self.renderer.padded(rows).to(self.device)
        return capture.last_logits(self.model, batch["input_ids"], batch["attention_mask"]).cpu()

    def tail_logits(self, rows: Sequence[list[int]], positions: int) -> Tensor:
        """Raw logits after each of the last positions of rows of token ids.

        Returns:
            [rows, positions, vocabulary], in the model's dtype and on its device. Positions before
            a row's first token hold nothing of use.
        """
        batch = self.renderer.padded(rows).to(self.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found = capture.tail_logits(self.model, ids, mask, positions)
        return nn.functional.pad(found, (0, 0, positions - found.shape[1], 0))

    def get_logits_batched(self, prompts: Prompts, report: bool = True) -> Tensor:
        """`get_logits` in batches that fit."""
        return torch.stack(self._batched(prompts, self.get_logits, report))  # type: ignore[arg-type]

    def get_logprobs(self, prompts: Prompts) -> Tensor:
        """Log-probabilities of the first generated token, float32 [prompts, vocabulary]."""
        return self.get_logits(prompts).log_softmax(dim=-1)

    def get_logprobs_batched(self, prompts: Prompts) -> Tensor:
        """`get_logprobs` in batches that fit."""
        return self.get_logits_batched(prompts).log_softmax(dim=-1)

    # --- generating ------------------------------------------------------------------------

    def generate(self, prompts: Prompts, **kwargs: Any) -> tuple[Any, Any]:
        """Transformers' own `generate`, greedy unless told otherwise.

        Returns:
            The inputs (BatchEncoding) and what `generate` returned.
        """
        batch = self._encode(prompts)
        arguments = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, **kwargs}
        with torch.inference_mode():
            return batch, self.model.generate(**batch, **arguments)

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
            decided: Asked of each growing reply; True ends it there.
            on_step: Told (tokens just made, rows that have left) after every step.
        """
        ids = self.get_reply_ids(
            prompts,
            max_new_tokens or self.settings.max_response_length,
            decide=None if decided is None else self._decider(decided),
            on_step=on_step,
        )
        return self._decode(ids, skip_special_tokens)

    def get_reply_ids(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        *,
        decide: generation.Decide | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Token ids of greedy replies, without the one that ends them."""
        batch = self._encode(prompts)
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

    def stream_reply(self, messages: Messages, max_new_tokens: int | None = None) -> Generator[str]:
        """Pieces of the reply to a conversation, as they are made.

        Closing the iterator stops the generation. Sampling follows the model's generation config.
        """
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        text = self.renderer.text(messages) + self.response_prefix
        batch = self.renderer.encode([text]).to(self.device)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = Flag()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(
                        **batch,
                        streamer=streamer,
                        max_new_tokens=max_new_tokens or self._room(batch["input_ids"].shape[1]),
                        pad_token_id=self.tokenizer.pad_token_id,
                        stopping_criteria=StoppingCriteriaList(
                            [lambda ids, scores: _all(ids, stop)]
                        ),
                    )
            except BaseException as error:  # handed to the reader below, which raises it
                failures.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]

    def _room(self, used: int) -> int:
        """New tokens that a reply may have: what is left of the model's positions."""
        positions = getattr(text_config(self.model), "max_position_embeddings", None)
        return max(1, min(LONGEST_REPLY, int(positions or LONGEST_REPLY) - used))

    def stream_chat_response(self, chat: Messages) -> str:
        """Print the reply to a conversation as it is made, and return it."""
        pieces = []
        for piece in self.stream_reply(chat):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n")
        return "".join(pieces)


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lay out the last positions side by side.

    As a slice of all positions, torch's CPU matmul repeats the vocabulary matrix for every row: 5 s
    and 5 GB for 100 rows and 49,152 tokens, where 0.01 s is enough. Not `contiguous`, to which a
    single row is in order whatever its strides.
    """
    return tuple(argument.clone(memory_format=torch.contiguous_format) for argument in args)


def _all(ids: Tensor, stop: Flag) -> Tensor:
    return torch.full((ids.shape[0],), stop.is_set(), dtype=torch.bool, device=ids.device)
