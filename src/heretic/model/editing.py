"""Plans to edits, and edits onto a model: by hooks while searching, in the weights for export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures import Writer
from heretic.directions import layer_basis
from heretic.edits import Ablation, OutputEdit, make_ablation, stack
from heretic.errors import ModelError
from heretic.records import Plan, RowNormalization


class EditFactory:
    """Turns plans into edits; keeps what no plan changes, and what the plan before had too."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self._ablations: dict[tuple[str, RowNormalization], Ablation] = {}

    def edits(self, plan: Plan, directions: Tensor) -> dict[str, OutputEdit]:
        """Edits by writer name; writers that the plan leaves alone are not in it.

        Args:
            directions: float32 [layers + 1, hidden], or [layers + 1, k, hidden]: k orthonormal ones
                per layer. A row of zeros edits nothing.

        Raises:
            ValueError: The plan's rank is above k.
        """
        return {
            writer.name: self._edit(writer, plan, amounts, basis)
            for writer, amounts, basis in planned(self._writers, plan, directions)
        }

    def _edit(
        self, writer: Writer, plan: Plan, amounts: Sequence[float], basis: Tensor
    ) -> OutputEdit:
        ablation = self.ablation(writer, basis, plan.row_normalization)
        return ablation.edit(ablation.directions.new_tensor(amounts))

    def ablation(
        self, writer: Writer, basis: Tensor, row_normalization: RowNormalization
    ) -> Ablation:
        """A writer's edit along orthonormal directions [k, hidden], but for the amounts."""
        key = writer.name, row_normalization
        known = self._ablations.get(key)
        if known is not None and torch.equal(known.directions, basis.to(known.directions)):
            return known
        norms = None if known is None else known.row_norms
        made = make_ablation(writer.weight(), basis, row_normalization, norms=norms)
        self._ablations[key] = made
        return made

    def forget(self) -> None:
        """Drop all that was kept, after the weights themselves have changed."""
        self._ablations.clear()


def planned(
    writers: Sequence[Writer], plan: Plan, directions: Tensor
) -> Iterator[tuple[Writer, tuple[float, ...], Tensor]]:
    """The writers that a plan edits, each with its amounts and its basis [k, hidden].

    Args:
        directions: As for `EditFactory.edits`.

    Raises:
        ValueError: The plan's rank is above k.
    """
    for writer in writers:
        amounts = plan.amounts(writer.component, writer.layer)
        if not any(amounts):
            continue
        basis = layer_basis(directions, writer.layer, plan)
        if basis[_nonzero(amounts)].any():
            yield writer, amounts, basis


def _nonzero(amounts: Sequence[float]) -> list[bool]:
    """Which directions are removed at all, as a mask over them."""
    return [amount != 0.0 for amount in amounts]


class RowEdits:
    """Edits of several plans on one model: while installed, each row is edited by its own plan.

    Args:
        plans: Edits by writer name, one mapping per plan.
    """

    def __init__(
        self, writers: Sequence[Writer], plans: Sequence[Mapping[str, OutputEdit]]
    ) -> None:
        self._plans = plans
        self._writers = [writer for writer in writers if any(writer.name in p for p in plans)]
        self._current: Mapping[str, OutputEdit] = {}
        self._stacked = (
            {w.name: stack([plan.get(w.name) for plan in plans]) for w in self._writers}
            if len(plans) > 1
            else {}
        )
        if len(plans) == 1:
            self.use(0)

    def first_layer(self, plan: int) -> int | None:
        """The first layer that the plan edits; None if it edits none."""
        edited = self._plans[plan]
        return min((w.layer for w in self._writers if w.name in edited), default=None)

    def use(self, plan: int) -> None:
        """Edit all rows by this plan from now on."""
        self._current = self._plans[plan]

    def use_rows(self, plans: Sequence[int]) -> None:
        """Edit row i by the plan plans[i] from now on."""
        if len(set(plans)) == 1:
            self.use(plans[0])
            return
        index = torch.tensor(plans)
        self._current = {name: edit.rows(index) for name, edit in self._stacked.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Edit the writers' outputs while the context lasts; no weight is touched."""
        with ExitStack() as stack_:
            for writer in self._writers:
                handle = writer.module.register_forward_hook(self._hook(writer))
                stack_.callback(handle.remove)
            yield

    def _hook(self, writer: Writer) -> Callable[..., Tensor]:
        name, bias = writer.name, writer.bias()

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            edit = self._current.get(name)
            return output if edit is None else edit.apply(output, bias)

        return hook


class WeightEditor:
    """Edits weights in place and brings the originals back, bit for bit.

    The originals of edited writers are kept in main memory (at most the writers' own size).
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = {writer.name: writer for writer in writers}
        self._originals: dict[str, Tensor] = {}

    @property
    def is_edited(self) -> bool:
        """Whether any weight differs from the original."""
        return bool(self._originals)

    @torch.no_grad()
    def apply(self, edits: Mapping[str, OutputEdit]) -> None:
        """Write edited weights; on any error the weights are as before the call.

        Raises:
            ModelError: A weight is quantised, so it cannot be edited in place.
        """
        for name in edits:
            parameter = self._parameter(name)
            if not parameter.is_floating_point():
                raise ModelError(
                    f"{name} is quantised and cannot be edited in place.",
                    remedy="Load the model with quantization = 'none' to export it.",
                )
        done: dict[str, Tensor] = {}
        try:
            for name, edit in edits.items():
                done[name] = self._parameter(name).detach().to("cpu", copy=True)
                self._write(name, edit)
        except BaseException:
            for name, before in done.items():
                self._parameter(name).copy_(before)
            raise
        self._originals = {**done, **self._originals}

    def _write(self, name: str, edit: OutputEdit) -> None:
        writer = self._writers[name]
        edited = edit.edited_weight(writer.weight())
        self._parameter(name).copy_(edited.T if writer.transposed else edited)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring every original weight back."""
        for name, original in self._originals.items():
            self._parameter(name).copy_(original)
        self._originals.clear()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The original weights while the context lasts, then the edited ones again."""
        edited = {
            name: self._parameter(name).detach().to("cpu", copy=True) for name in self._originals
        }
        originals = dict(self._originals)
        self.restore()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in edited.items():
                    self._parameter(name).copy_(weight)
            self._originals.update(originals)

    def _parameter(self, name: str) -> Tensor:
        parameter = self._writers[name].module.weight
        assert isinstance(parameter, Tensor)
        return parameter
