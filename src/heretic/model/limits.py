"""What a model can read: ids that have an embedding, and positions that have an entry.

Beyond these a CPU raises an error deep in the model, and an accelerator stops working until the
process ends. Rows of tokens are therefore checked before they get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from heretic.architectures.resolver import text_config
from heretic.architectures.table import COMPUTED_TABLES, OTHER_TOWERS
from heretic.errors import ModelError, PromptError

MOST_SPARE = 2
"""Entries that a table of positions may have before the first position."""

SHOWN = 60
"""Characters of a prompt in a message."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can read.

    Attributes:
        name: The model's name in the messages.
        ids: Number of rows of its input embeddings.
        positions: Number of positions that it has; None if it computes them for any length.
    """

    name: str
    ids: int
    positions: int | None

    def check_ids(self, rows: Sequence[Sequence[int]], tokenizer: Any) -> None:
        """Refuse tokens without an embedding.

        Raises:
            ModelError: A row has one.
        """
        highest = max((max(row) for row in rows if row), default=0)
        if highest < self.ids:
            return
        token = tokenizer.convert_ids_to_tokens(highest)
        raise ModelError(
            f"The tokenizer gives the token {token!r} the id {highest}, and {self.name} has "
            f"embeddings for the ids 0 to {self.ids - 1} only.",
            remedy="Use the tokenizer that belongs to these weights, or enlarge the embeddings "
            "(`resize_token_embeddings`) and save the model.",
        )

    def check_lengths(
        self, rows: Sequence[Sequence[int]], texts: Sequence[str], reply: int = 0
    ) -> None:
        """Refuse texts that, with a reply, have more tokens than the model has positions.

        Args:
            rows: Token ids of the texts, template included.
            texts: What the message names.
            reply: New tokens that follow.

        Raises:
            PromptError: One has.
        """
        if self.positions is None or not rows:
            return
        longest = max(range(len(rows)), key=lambda index: len(rows[index]))
        length = len(rows[longest])
        if length + reply <= self.positions:
            return
        text = " ".join(texts[longest].split())
        text = text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
        more = f" and {reply} for the reply" if reply else ""
        raise PromptError(
            f"The prompt {text!r} takes {length} tokens{more}, and {self.name} has "
            f"{self.positions} positions.",
            remedy="Shorten or leave out long prompts"
            + (", or lower max_response_length." if reply else "."),
        )


def limits_of(model: Any, name: str) -> Limits:
    """The limits of a transformers model.

    Args:
        name: Its name in the messages.
    """
    return Limits(name, model.get_input_embeddings().weight.shape[0], positions_of(model))


def positions_of(model: Any) -> int | None:
    """Number of positions in the text model's table; None if it has none."""
    config = text_config(model)
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len")
    promised = next((value for n in names if (value := getattr(config, n, None))), None)
    if not isinstance(promised, int):
        return None
    if getattr(config, "model_type", None) in COMPUTED_TABLES:
        return promised
    for path, module in model.named_modules():
        rows = getattr(module, "num_embeddings", 0)
        if (
            isinstance(module, nn.Embedding)
            and ("pos" in path.rpartition(".")[2] or path.endswith("wpe"))
            and promised <= rows <= promised + MOST_SPARE
            and not any(part in path for part in OTHER_TOWERS)
        ):
            return _usable(module, promised)
    return None


def _usable(table: nn.Embedding, promised: int) -> int:
    """Positions of a table that text can use: some count from the padding's id on."""
    if table.padding_idx is None:
        return promised
    # ProphetNet predicts several tokens at once, and reads one position ahead.
    ahead = 2 if "ProphetNet" in type(table).__name__ else 1
    return table.num_embeddings - table.padding_idx - ahead


def mend_padding(tokenizer: Any, ids: int) -> str | None:
    """Pad with another token if the tokenizer's own has no embedding.

    Args:
        ids: Number of rows of the model's input embeddings.

    Returns:
        What was done, in a sentence; None if nothing had to be.

    Raises:
        ModelError: No token that could serve has an embedding.
    """
    if tokenizer.pad_token_id < ids:
        return None
    names = ("eos_token", "unk_token", "bos_token")
    known = [token for name in names if (token := getattr(tokenizer, name)) is not None]
    found = next((t for t in known if tokenizer.convert_tokens_to_ids(t) < ids), None)
    if found is None:
        raise ModelError(
            f"The tokenizer's pad token {tokenizer.pad_token!r} has the id "
            f"{tokenizer.pad_token_id}, and the model has embeddings for the ids 0 to {ids - 1} "
            "only.",
            remedy="Set another pad_token in tokenizer_config.json.",
        )
    old, number = tokenizer.pad_token, tokenizer.pad_token_id
    tokenizer.pad_token = found
    return (
        f"The pad token {old!r} (id {number}) has no embedding: padding is with {found!r} instead"
    )
