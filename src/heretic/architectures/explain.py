"""Explain what a layer adds to the residual stream by the outputs of its modules.

A layer's output is a sum of the incoming stream and its writers' outputs. Each is multiplied by a
factor, which may differ from token to token (gates of shared experts, residual multipliers) or from
channel to channel (layer scales). The factors are fitted by least squares to the outputs of one
forward pass. A norm's output is explained by its input: the factors of a norm between a writer and
the stream are gains of that writer, while a norm of the stream itself has no gains. A short
convolution over time between a writer and the stream (Inkling) is treated like a norm; the edit
acts before it.

Where a layer carries several streams, each outgoing stream is a sum of all incoming streams and the
writers' outputs, with factors that also differ from stream to stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.resolver import first_tensor, gated_writer, is_writer, layer_input
from heretic.architectures.streams import carries_several, side_by_side

UNEXPLAINED = 0.02
"""Largest share of a layer's contribution that may stay unexplained, in addition to rounding of the
stream itself. A missed writer leaves a far larger share."""

ROUNDINGS = 2
"""How often a layer rounds the stream: once per writer that is added."""

USED = 1e-3
"""A module with a smaller share of the explained sum counts as not contributing."""

STREAM = ":"
"""Prefix of the names of incoming streams; names of modules have no colon."""

Gains = dict[str, Tensor | None]
"""Path of a module to the factors of its channels, float32 [hidden]; None where all are alike."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Input and output of one module in a forward pass.

    Attributes:
        module: The module.
        before: Its input, float64 [tokens, hidden] on the CPU; None if its shape is not the
            output's. A module with an output for each stream has [tokens, streams * hidden].
        after: Its output, of the same form.
    """

    module: nn.Module
    before: Tensor | None
    after: Tensor


@dataclass(slots=True)
class LayerRun:
    """Inputs and outputs of one layer and its modules in a forward pass.

    Attributes:
        before: The layer's input, float64 [tokens, streams, hidden]; mostly one stream.
        after: The layer's output, same shape.
        epsilon: Machine epsilon of the model's dtype.
        ran: Modules with one hidden state per token as output, by path within the layer.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    epsilon: float = 0.0
    ran: dict[str, Ran] = field(default_factory=dict)


@contextmanager
def watched(
    layers: Sequence[nn.Module], watch: Callable[[nn.Module], Collection[str]], hidden: int
) -> Iterator[list[LayerRun]]:
    """Record layers while the context lasts.

    If a module runs several times, its last run is kept; norms and convolutions keep all runs,
    earlier ones under names of their own.

    Args:
        layers: The layers to record.
        watch: Gives the paths of the modules to record within a layer.
        hidden: Width of the stream.
    """
    runs = [LayerRun() for _ in layers]
    with ExitStack() as stack:

        def hook(module: nn.Module, action: Callable[..., None]) -> None:
            handle = module.register_forward_hook(action, with_kwargs=True)
            stack.callback(handle.remove)

        for layer, run in zip(layers, runs, strict=True):
            hook(layer, _layer_watcher(run, hidden))
            several = carries_several(layer)
            for path in watch(layer):
                hook(layer.get_submodule(path), _module_watcher(run, path, hidden, several))
        yield runs


def _layer_watcher(run: LayerRun, hidden: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before, after = layer_input(args, kwargs), first_tensor(output)
        streams = [side_by_side(module, tensor, hidden) for tensor in (before, after)]
        run.before, run.after = (_copied(each.flatten(0, 1)) for each in streams)
        run.epsilon = torch.finfo(after.dtype).eps

    return hook


def _module_watcher(run: LayerRun, path: str, hidden: int, several: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(tensor, Tensor):
            return
        width = tensor.shape[-1]
        if width == hidden or (several and width % hidden == 0):
            own = args[0] if args else None
            same = isinstance(own, Tensor) and own.shape == tensor.shape
            before = _flat(own) if same and own is not None else None
            if passes_on(module) and path in run.ran:
                run.ran[f"{path} before {len(run.ran)}"] = run.ran[path]
            run.ran[path] = Ran(module, before, _flat(tensor))

    return hook


def _flat(tensor: Tensor) -> Tensor:
    """A float64 copy on the CPU as [tokens, width]."""
    return _copied(tensor).reshape(-1, tensor.shape[-1])


def _copied(tensor: Tensor) -> Tensor:
    """A float64 copy on the CPU; a copy, because layers add in place."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and does nothing else."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def passes_on(module: nn.Module) -> bool:
    """Whether a module keeps channels apart: a norm, or a convolution over time."""
    return is_norm(module) or "shortconv" in type(module).__name__.lower()


def candidates(layer: nn.Module) -> list[str]:
    """Paths of a layer's modules that could write to the stream, and of its norms."""
    modules = dict(layer.named_modules())
    gated = {path: gated_writer(path, module) for path, module in modules.items()}
    return [
        path
        for path, module in modules.items()
        if path
        and path not in gated.values()
        and (passes_on(module) or is_writer(module) or gated[path])
    ]


def explain(run: LayerRun, among: Collection[str]) -> Gains | None:
    """The modules whose outputs add up to a layer's output, with their gains.

    Args:
        run: What was recorded of the layer.
        among: Paths of modules that may be writers.

    Returns:
        None if no modules explain the output.
    """
    if run.before is None or run.after is None:
        return None
    search = _Search(run.before, run.after, run.epsilon, run.ran, set(among))
    gains = search.of(run.after.flatten(0, 1))
    if gains is None:
        return None
    return {path: gain for path, gain in gains.items() if not _is_stream(path)} or None


def _is_stream(name: str) -> bool:
    return name.startswith(STREAM)


class _Search:
    """Searches for the explanation of one layer.

    Every stream of every token is a row of its own: tensors are [tokens * streams, hidden].
    """

    def __init__(
        self,
        before: Tensor,
        after: Tensor,
        epsilon: float,
        ran: Mapping[str, Ran],
        among: set[str],
    ) -> None:
        tokens, self._count, self._hidden = after.shape
        self._epsilon = epsilon
        # The first position often carries activations so large that rounding hides the rest.
        self._part = slice(self._count, None) if tokens > 1 else slice(None)
        self._before = before.flatten(0, 1)
        self._streams = {f"{STREAM}{i}": self._lines(before[:, i]) for i in range(self._count)}
        self._columns: dict[str, Tensor] = {}
        self._norms = {
            path: Ran(one.module, self._lines(one.before), self._lines(one.after))
            for path, one in ran.items()
            if passes_on(one.module)
            and one.before is not None
            and one.after.shape == (tokens, self._hidden)
        }
        for path in sorted(among & set(ran), key=lambda path: -path.count(".")):
            column = ran[path].after
            wide = self._count * self._hidden if not passes_on(ran[path].module) else self._hidden
            fits = len(column) % tokens == 0 and column.shape[-1] in (self._hidden, wide)
            if path not in self._norms and fits:
                # Experts with outputs for all tokens are stacked along the first axis; sum them.
                summed = self._lines(column.reshape(-1, tokens, column.shape[-1]).sum(dim=0))
                if not any(torch.equal(summed, other) for other in self._columns.values()):
                    self._columns[path] = summed

    def _lines(self, tensor: Tensor) -> Tensor:
        """One row per token and stream, from [tokens, hidden] or [tokens, streams * hidden].

        The first form has one state for all streams, which is repeated.
        """
        if tensor.shape[-1] == self._hidden:
            return tensor.repeat_interleave(self._count, dim=0)
        return tensor.reshape(-1, self._hidden)

    def of(self, target: Tensor, passed: frozenset[str] = frozenset()) -> Gains | None:
        """The modules and streams that add up to `target`, with their gains; None without a fit.

        Args:
            target: [tokens * streams, hidden].
            passed: Norms between `target` and the layer's output, which are not used again.
        """
        norms = {path: ran for path, ran in self._norms.items() if path not in passed}
        for path, ran in norms.items():
            # A norm at the layer's end normalises the stream itself; its factors are not gains.
            if torch.equal(ran.after, target):
                assert ran.before is not None
                return self.of(ran.before, passed | {path})
        if passed and self._count > 1 and self._fitted(self._streams, target):
            return dict.fromkeys(self._streams)  # otherwise rounding errors would look like writers
        plain = {**self._streams, **self._columns}
        scales = self._fitted(plain, target) or self._fitted(
            plain | {path: ran.after for path, ran in norms.items()}, target
        )
        if scales is None:
            return None
        found: Gains = {}
        for path, scale in scales.items():
            within = self._before_norm(path, passed) if path in norms else {path: None}
            if within is None:
                return None
            made = {name: _product(gain, scale) for name, gain in within.items()}
            # Rounding errors may look like a norm of the whole sum; the writer's own gain counts.
            found = made | found if path in norms and any(map(_is_stream, made)) else found | made
        return found

    def _fitted(self, columns: Mapping[str, Tensor], target: Tensor) -> Gains | None:
        """`_fit` with the error that is allowed for this target."""
        wanted = target[self._part]
        added = min(float(wanted.norm()), float(self._added(target).norm()))
        rounding = ROUNDINGS * self._epsilon * float(wanted.norm())
        # Rows of several streams may be equal, so they cannot determine factors per channel.
        allowed = UNEXPLAINED * added + rounding
        return _fit(columns, target, self._part, allowed, channels=self._count == 1)

    def _added(self, target: Tensor) -> Tensor:
        """The part of a target that is not a mixture of the incoming streams, [rows, hidden]."""
        if self._count == 1:
            return (target - self._before)[self._part]
        streams = torch.stack([each[self._part] for each in self._streams.values()], dim=-1)
        wanted = target[self._part].unsqueeze(-1)
        factors: Tensor = torch.linalg.lstsq(streams, wanted, driver="gelsd").solution
        return (wanted - streams @ factors).squeeze(-1)

    def _before_norm(self, path: str, passed: frozenset[str]) -> Gains | None:
        """The modules and streams that add up to a norm's input, with the norm's gains."""
        ran = self._norms[path]
        assert ran.before is not None
        within = self.of(ran.before, passed | {path})
        if within is None or any(map(_is_stream, within)):  # a norm of the stream has no gains
            return within
        gains = norm_gains(ran.module, ran.after.shape[-1]) if is_norm(ran.module) else None
        return {name: _product(gains, inner) for name, inner in within.items()}


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first * second


def _fit(
    columns: Mapping[str, Tensor], target: Tensor, part: slice, allowed: float, channels: bool
) -> Gains | None:
    """Fit the target by a sum of scaled columns; None if the error is above `allowed`.

    Factors per token are tried first, then, if `channels` is true, factors per channel, without
    and with a bias.

    Returns:
        The columns that contribute. Each has its factors per channel, float32 [hidden], or None
        where it is scaled per token or all factors are alike.
    """
    names = list(columns)
    stacked = torch.stack([columns[name][part] for name in names], dim=-1)  # [tokens, hidden, k]
    wanted = target[part].unsqueeze(-1)
    by_channel = stacked.transpose(0, 1), wanted.transpose(0, 1)
    biased = tuple(values - values.mean(dim=1, keepdim=True) for values in by_channel)
    for left, right in ((stacked, wanted), *((by_channel, biased) if channels else ())):
        if left.shape[1] <= len(names) + 1:
            continue  # with so few equations anything would fit
        # The minimum-norm solution, because a module's output may be all zeros.
        factors = torch.linalg.lstsq(left, right, driver="gelsd").solution  # [., k, 1]
        rest = float((left @ factors - right).norm())
        if rest > allowed:
            continue
        parts = left * factors.mT
        # The stream may be far larger than everything that the layer adds to it.
        carried = [i for i, name in enumerate(names) if _is_stream(name)]
        added = float((right.squeeze(-1) - parts[..., carried].sum(dim=-1)).norm())
        least = dict.fromkeys(names, USED * added)
        for i in carried:
            least[names[i]] = USED * min(added, float(right.norm()))
        norms = parts.flatten(0, 1).norm(dim=0)
        return {
            name: None if left is stacked else _uneven(factors[:, i, 0])
            for i, name in enumerate(names)
            if norms[i] > least[name]
        }
    return None


def _uneven(factors: Tensor) -> Tensor | None:
    """The factors as float32 [hidden]; None where all are alike."""
    same = torch.allclose(factors, factors.mean(), rtol=1e-3)
    return None if same else factors.float()


def norm_gains(norm: nn.Module, hidden: int) -> Tensor | None:
    """The factor of each channel in a norm, float32 [hidden]; None if all are 1.

    The norm is applied to a vector with as many +1 as -1, so it does not matter how its class
    stores the gains (Gemma adds 1 to them). None also where the weights are not in memory.
    """
    reference = next(norm.parameters(), torch.zeros(1))
    if reference.is_meta:
        return None
    signs = torch.ones(hidden, device=reference.device, dtype=reference.dtype)
    signs[1::2] = -1
    with torch.no_grad():
        tried = norm(signs.view(1, 1, -1)).float().view(-1)
        bias = getattr(norm, "bias", None)
        if isinstance(bias, Tensor):
            tried = tried - bias.float()
    gains = tried * signs.float()
    return None if torch.allclose(gains, torch.ones_like(gains), atol=1e-4) else gains
