"""Turns plans into edits and applies them: by hooks in the search, to the weights for export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heretic.architectures.resolver import Writer
from heretic.method.directions import layer_basis
from heretic.method.edits import Ablation, OutputEdit, Vectors, make_ablation, make_fitted, stack
from heretic.model.edit_table import EditTable
from heretic.model.experts import edited
from heretic.model.fits import Fits
from heretic.records.plan import FittedKernel, Plan, RowNormalization

Stored = tuple[Tensor, Tensor | None]
"""A writer's weight and bias; None without a bias."""

Basis = Tensor | Vectors
"""What a writer is edited along: orthonormal directions [k, hidden], or the vectors of a fit."""


class EditFactory:
    """Turns plans into edits.

    It keeps row norms, which no plan changes, and ablations until their vectors change.

    Attributes:
        fits: The fits that plans may name.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.fits = Fits()
        self._writers = writers
        self._ablations: dict[tuple[str, RowNormalization, bool], tuple[Basis, Ablation]] = {}

    def edits(self, plan: Plan, directions: Tensor, strength: float = 1.0) -> dict[str, OutputEdit]:
        """Edits by writer name, without the writers that the plan leaves alone.

        Args:
            directions: float32 [layers + 1, hidden], or [layers + 1, k, hidden] with k orthonormal
                directions per layer. A row of zeros edits nothing.
            strength: Factor of every ablation weight; with 0 nothing is edited.

        Raises:
            ValueError: The plan's rank is above k, or not the rank of its fit.
            RunError: The plan names a fit that is not in `fits`.
        """
        if strength == 0.0:
            return {}
        return {
            writer.name: self._edit(
                writer, plan, [strength * weight for weight in ablation_weights], basis
            )
            for writer, ablation_weights, basis in planned(
                self._writers, plan, directions, self.fits
            )
        }

    def _edit(
        self, writer: Writer, plan: Plan, ablation_weights: Sequence[float], basis: Basis
    ) -> OutputEdit:
        ablation = self.ablation(writer, basis, plan.row_normalization)
        return ablation.edit(ablation.directions.new_tensor(ablation_weights))

    def ablation(
        self, writer: Writer, basis: Basis, row_normalization: RowNormalization
    ) -> Ablation:
        """A writer's edit along its basis, without ablation weights."""
        # Experts whose sum is edited share one edit, whatever their weights.
        shared = writer.edited_in_sum(row_normalization)
        name = str(id(writer.module)) if shared else writer.name
        key = name, row_normalization, isinstance(basis, Vectors)
        known = self._ablations.get(key)
        if known is not None and _same(known[0], basis):
            return known[1]
        norms = None if known is None else known[1].row_norms
        # With `none` the edit does not depend on the weight, so packed weights stay packed.
        example = basis.read if isinstance(basis, Vectors) else basis
        weight = writer.like(example) if row_normalization == "none" else writer.weight()
        if isinstance(basis, Vectors):
            made = make_fitted(weight, basis, row_normalization, norms=norms)
        else:
            basis = basis.clone()
            made = make_ablation(weight, basis, row_normalization, norms=norms, gains=writer.gains)
        made = replace(made, moves_bias=shared)
        self._ablations[key] = basis, made
        return made

    def forget(self) -> None:
        """Drop everything kept; needed after the weights have changed."""
        self._ablations.clear()


def _same(one: Basis, other: Basis) -> bool:
    if isinstance(one, Vectors) and isinstance(other, Vectors):
        return torch.equal(one.write, other.write) and torch.equal(one.read, other.read)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def planned(
    writers: Sequence[Writer], plan: Plan, directions: Tensor, fits: Fits
) -> Iterator[tuple[Writer, tuple[float, ...], Basis]]:
    """The writers that a plan edits, each with its ablation weights and basis.

    Args:
        directions: See `EditFactory.edits`.
        fits: See `EditFactory`.

    Raises:
        ValueError: The plan's rank is above k, or not the rank of its fit.
        RunError: The plan names a fit that is not among these.
    """
    for writer in writers:
        kernel = plan.kernel(writer.component)
        ablation_weights = plan.ablation_weights(writer.component, writer.layer)
        if not any(ablation_weights):
            continue
        if isinstance(kernel, FittedKernel):
            fit = fits[kernel.fit]
            if fit.rank != plan.rank:
                raise ValueError(f"the plan has rank {plan.rank}, its fit rank {fit.rank}")
            vectors = fit.at(writer.component, writer.layer, kernel.position)
            if vectors is not None:
                yield writer, ablation_weights, vectors
            continue
        basis = layer_basis(directions, writer.layer, plan)
        if basis[_nonzero(ablation_weights)].any():
            yield writer, ablation_weights, basis


def _nonzero(ablation_weights: Sequence[float]) -> list[bool]:
    """Mask of the directions whose ablation weight is not 0."""
    return [amount != 0.0 for amount in ablation_weights]


@contextmanager
def install(
    sites: Iterable[Sequence[Writer]], edit_of: Callable[[Writer], OutputEdit | None]
) -> Iterator[None]:
    """Edit the outputs of modules while the context lasts.

    Args:
        sites: The writers of each module, from `sites_of`.
        edit_of: Called with a writer in every forward pass. It returns one edit for all rows,
            stacked edits with one for each row of the batch, or None for no edit.
    """
    with ExitStack() as stack_:
        for site in sites:
            if site[0].expert is None:
                stack_.callback(_hooked(site[0], edit_of).remove)
            else:
                stack_.enter_context(edited(site, edit_of))
        yield


def sites_of(writers: Iterable[Writer]) -> list[list[Writer]]:
    """Group writers by the module that holds them."""
    sites: dict[int, list[Writer]] = {}
    for writer in writers:
        sites.setdefault(id(writer.module), []).append(writer)
    return list(sites.values())


def _hooked(writer: Writer, edit_of: Callable[[Writer], OutputEdit | None]) -> RemovableHandle:
    bias = writer.bias()

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        edit = edit_of(writer)
        return output if edit is None else edit.apply(output, bias)

    return writer.module.register_forward_hook(hook)


class RowEdits:
    """Edits of several plans on one model: while installed, each row is edited by its own plan.

    Args:
        plans: Edits by writer name, one mapping per plan.
        table: Where stacked edits are held; by default in memory of their own.

    Attributes:
        version: That of the table, as it was filled with these plans.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        plans: Sequence[Mapping[str, OutputEdit]],
        table: EditTable | None = None,
    ) -> None:
        self._plans = plans
        names = {name for plan in plans for name in plan}
        self._stacked: Mapping[str, OutputEdit] | None = None
        self.version = 0
        if table is not None:
            self._stacked = table.put(self._stack(names))
            self.version = table.version
            names |= set(self._stacked)  # a captured step edits all that the table holds
        self._writers = [writer for writer in writers if writer.name in names]
        self._current: Mapping[str, OutputEdit] = {}
        self._index: Tensor | None = None  # the plan of each row; None: `_current` for all
        if len(plans) == 1:
            self.use(0)

    def _stack(self, names: Iterable[str]) -> dict[str, OutputEdit]:
        return {name: stack([plan.get(name) for plan in self._plans]) for name in names}

    def first_layer(self, plan: int) -> int | None:
        """The first layer that the plan edits; None if it edits none."""
        edited = self._plans[plan]
        return min((w.layer for w in self._writers if w.name in edited), default=None)

    def use(self, plan: int) -> None:
        """Edit all rows by this plan from now on."""
        self._current, self._index = self._plans[plan], None

    def use_index(self, index: Tensor) -> None:
        """Edit row i by the plan index[i] from now on.

        Args:
            index: int64 [rows]. Every forward pass reads it anew, so it may be changed in place.
        """
        if self._stacked is None:
            self._stacked = self._stack({name for plan in self._plans for name in plan})
        self._index = index

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Edit the writers' outputs while the context lasts; no weight is changed."""
        with install(sites_of(self._writers), self._edit_of):
            yield

    def _edit_of(self, writer: Writer) -> OutputEdit | None:
        if self._index is None:
            return self._current.get(writer.name)
        stacked = (self._stacked or {}).get(writer.name)
        return None if stacked is None else stacked.rows(self._index)


class WeightEditor:
    """Edits weights in place and brings the originals back, bit for bit.

    The originals of edited writers are kept in main memory (at most the writers' own size).
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = {writer.name: writer for writer in writers}
        self._originals: dict[str, Stored] = {}

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
        done: dict[str, Stored] = {}
        try:
            for name in edits:
                self._writers[name].stored()
            for name, edit in edits.items():
                writer = self._writers[name]
                done[name] = _copied(writer)
                writer.stored().copy_(edit.edited_weight(writer.weight()))
                bias = writer.bias()
                if bias is not None:
                    bias.copy_(edit.edited_bias(bias.to(edit.read.dtype)))
        except BaseException:
            self._put_back(done)
            raise
        self._originals = {**done, **self._originals}

    @torch.no_grad()
    def restore(self) -> None:
        """Bring every original weight back."""
        self._put_back(self._originals)
        self._originals.clear()

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The original weights while the context lasts, then the edited ones again."""
        edited = {name: _copied(self._writers[name]) for name in self._originals}
        originals = dict(self._originals)
        self.restore()
        try:
            yield
        finally:
            with torch.no_grad():
                self._put_back(edited)
            self._originals.update(originals)

    def _put_back(self, stored: Mapping[str, Stored]) -> None:
        for name, (weight, bias) in stored.items():
            writer = self._writers[name]
            writer.stored().copy_(weight)
            own = writer.bias()
            if own is not None and bias is not None:
                own.copy_(bias)


def _copied(writer: Writer) -> Stored:
    """Copies of weight [d_out, d_in] and bias [d_out], in main memory."""
    bias = writer.bias()
    return (
        writer.stored().to("cpu", copy=True),
        None if bias is None else bias.to("cpu", copy=True),
    )
