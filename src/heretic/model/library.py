"""Methods of a model for programs; the package itself does not use them. See docs/library.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heretic.config.settings import Settings
from heretic.events import Reporter
from heretic.model.core import Model
from heretic.model.reading import ModelOptions, Prompts
from heretic.model.templates import Messages
from heretic.records.options import options_of
from heretic.records.plan import AbliterationParameters, DirectionScope, Plan
from heretic.system.display import safe


class LibraryModel(Model):
    """A model loaded from settings; programs import it as `heretic.model.Model`.

    Attributes:
        settings: The settings it was loaded from.
    """

    def __init__(self, settings: Settings, reporter: Reporter | None = None) -> None:
        """Load `settings.model`.

        Raises:
            ModelError: See `heretic.model.loading.load`.
        """
        self.settings = settings
        super().__init__(options_of(ModelOptions, settings), reporter)

    def get_layer_matrices(self, layer_index: int) -> dict[str, list[Tensor]]:
        """By component, the weights [d_out, d_in] that write to the residual stream in a layer.

        Raises:
            ModelError: A weight is not in memory, or is packed.
        """
        matrices: dict[str, list[Tensor]] = {}
        for writer in self.writers:
            if writer.layer == layer_index:
                matrices.setdefault(writer.component, []).append(writer.stored())
        return matrices

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
            direction_index: Fractional layer index whose direction is used for all layers; None
                uses each layer's own.
            parameters: Kernels by component, or by its short name `attn` / `mlp`.
            direction_scope: `mean` for the mean direction; by default `direction_index` decides.

        Raises:
            ModelError: The model is quantised.
            ValueError: The model has no such component.
        """
        plan = Plan.create(
            direction_scope=direction_scope
            or ("per layer" if direction_index is None else "global"),
            direction_index=direction_index,
            kernels=parameters,
            row_normalization=self.options.row_normalization,
        )
        unknown = {name for name, _ in plan.kernels} - set(self.get_abliterable_components())
        if unknown:
            raise ValueError(
                f"unknown components {sorted(unknown)}; this model has "
                f"{self.get_abliterable_components()}"
            )
        self.apply(plan, refusal_directions)

    def reload_model(self) -> None:
        """Bring the original weights back, bit for bit."""
        self.restore()

    def get_logprobs(self, prompts: Prompts) -> Tensor:
        """Log-probabilities of the first generated token, float32 [prompts, vocabulary]."""
        return self.get_logits(prompts).log_softmax(dim=-1)

    def get_logprobs_batched(self, prompts: Prompts) -> Tensor:
        """`get_logprobs` in batches that fit."""
        return self.get_logits_batched(prompts).log_softmax(dim=-1)

    def generate(self, prompts: Prompts, **kwargs: Any) -> tuple[Any, Any]:
        """Transformers' own `generate`, greedy unless `kwargs` say otherwise.

        Returns:
            The inputs (BatchEncoding) and what `generate` returned.
        """
        batch = self._encode(prompts)
        arguments = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, **kwargs}
        with torch.inference_mode():
            return batch, self.model.generate(**batch, **arguments)

    def stream_chat_response(self, chat: Messages) -> str:
        """Print the reply to a conversation as it is made, and return it."""
        pieces = []
        for piece in self.stream_reply(chat):
            sys.stdout.write(safe(piece))
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n")
        return "".join(pieces)
