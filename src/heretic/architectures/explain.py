"""What a layer adds to the residual stream, explained by what its modules put out.

A layer's output is a sum: the stream that came in, and what its writers wrote, each times a number
that may differ from token to token (gates of shared experts, residual multipliers) or from channel
to channel (layer scales). So it is fitted by least squares, from the outputs seen in one forward
pass. A norm's output is explained by its input in turn: what a norm between a writer and the stream
does to each channel is a gain of that writer; a norm of the stream itself is none. A short
convolution over time between the two (Inkling) is gone through likewise; the edit acts before it.

Where a layer carries several streams, each that it puts out is such a sum: of all that came in, and
of the writers, by numbers that also differ from stream to stream.
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
"""Largest part of a layer's contribution that may stay unexplained, beside what rounding of the
stream itself accounts for; a missed writer is far above."""

ROUNDINGS = 2
"""Roundings of the stream inside a layer: one for each writer's sum."""

USED = 1e-3
"""Share of what is explained below which a module counts as not taking part."""

STREAM = ":"
"""Begins what stands for a stream that came in, among names of modules, which have no colon."""

Gains = dict[str, Tensor | None]
"""Path of a module to what its channels are multiplied with, float32 [hidden]; None for nothing."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One module's run. Attributes: its input and output, float64, on the CPU.

    [tokens, hidden], or [tokens, streams * hidden] of what is put out for each stream.
    """

    module: nn.Module
    before: Tensor | None
    after: Tensor


@dataclass(slots=True)
class LayerRun:
    """What was seen of one layer in a forward pass.

    Attributes:
        before, after: The streams, mostly one, float64 [tokens, streams, hidden].
        epsilon: Of the model's dtype.
        ran: Modules that put out a hidden state for every token, by path within the layer.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    epsilon: float = 0.0
    ran: dict[str, Ran] = field(default_factory=dict)


@contextmanager
def watched(
    layers: Sequence[nn.Module], watch: Callable[[nn.Module], Collection[str]], hidden: int
) -> Iterator[list[LayerRun]]:
    """Record layers while the context lasts; of modules that run twice, the last time.

    Of norms every time is kept, earlier ones under names of their own.


    Args:
        watch: Paths of the modules to record within a layer.
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
    """[tokens, width], a copy."""
    return _copied(tensor).reshape(-1, tensor.shape[-1])


def _copied(tensor: Tensor) -> Tensor:
    """In double precision; a copy, since layers add in place."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and does nothing else."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def passes_on(module: nn.Module) -> bool:
    """Whether a module hands on each channel by itself: a norm, or a convolution over time."""
    return is_norm(module) or "shortconv" in type(module).__name__.lower()


def candidates(layer: nn.Module) -> list[str]:
    """Paths of all modules in a layer that might write to the stream, and of its norms."""
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
    """The modules that make up a layer's output, with norms; None if nothing does.

    Args:
        among: Paths of modules that may be writers.
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
    """One layer's explanation in the making.

    Every stream of every token is a line by itself: all that follows is [tokens * streams, hidden].
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
                # Experts that each put out all tokens come one after the other, to be summed.
                summed = self._lines(column.reshape(-1, tokens, column.shape[-1]).sum(dim=0))
                if not any(torch.equal(summed, other) for other in self._columns.values()):
                    self._columns[path] = summed

    def _lines(self, tensor: Tensor) -> Tensor:
        """A line for each stream of [tokens, hidden], the same, or [tokens, streams * hidden]."""
        if tensor.shape[-1] == self._hidden:
            return tensor.repeat_interleave(self._count, dim=0)
        return tensor.reshape(-1, self._hidden)

    def of(self, target: Tensor, passed: frozenset[str] = frozenset()) -> Gains | None:
        """What adds up to `target`: path to gains; streams are in it under their own names.

        Args:
            passed: Norms that were gone through on the way here.
        """
        norms = {path: ran for path, ran in self._norms.items() if path not in passed}
        for path, ran in norms.items():
            # A norm that ends the layer: the stream itself is normed, which is no gain.
            if torch.equal(ran.after, target):
                assert ran.before is not None
                return self.of(ran.before, passed | {path})
        if passed and self._count > 1 and self._fitted(self._streams, target):
            return dict.fromkeys(self._streams)  # else what rounding left would look like writers
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
            # What rounding leaves may look like a norm of the whole sum; a writer's own counts.
            found = made | found if path in norms and any(map(_is_stream, made)) else found | made
        return found

    def _fitted(self, columns: Mapping[str, Tensor], target: Tensor) -> Gains | None:
        """`_fit` with what may stay unexplained of this target."""
        wanted = target[self._part]
        added = min(float(wanted.norm()), float(self._added(target).norm()))
        rounding = ROUNDINGS * self._epsilon * float(wanted.norm())
        # Lines of several streams may be the same, so that they prove nothing about channels.
        allowed = UNEXPLAINED * added + rounding
        return _fit(columns, target, self._part, allowed, channels=self._count == 1)

    def _added(self, target: Tensor) -> Tensor:
        """What a target has beyond the stream that came in, or beyond any mixture of several."""
        if self._count == 1:
            return (target - self._before)[self._part]
        streams = torch.stack([each[self._part] for each in self._streams.values()], dim=-1)
        wanted = target[self._part].unsqueeze(-1)
        factors: Tensor = torch.linalg.lstsq(streams, wanted, driver="gelsd").solution
        return (wanted - streams @ factors).squeeze(-1)

    def _before_norm(self, path: str, passed: frozenset[str]) -> Gains | None:
        """What a norm's output is made of."""
        ran = self._norms[path]
        assert ran.before is not None
        within = self.of(ran.before, passed | {path})
        if within is None or any(map(_is_stream, within)):  # of the stream, normed, nothing gains
            return within
        gains = norm_gains(ran.module, ran.after.shape[-1]) if is_norm(ran.module) else None
        return {name: _product(gains, inner) for name, inner in within.items()}


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first * second


def _fit(
    columns: Mapping[str, Tensor], target: Tensor, part: slice, allowed: float, channels: bool
) -> Gains | None:
    """Which columns make up the target, but for what is allowed to be left.

    A column comes with what it is scaled with per channel; None: by numbers that may differ from
    token to token, or by one. Scales per channel, tried where `channels` says so, may come with a
    bias that no module puts out.
    """
    names = list(columns)
    stacked = torch.stack([columns[name][part] for name in names], dim=-1)  # [tokens, hidden, k]
    wanted = target[part].unsqueeze(-1)
    by_channel = stacked.transpose(0, 1), wanted.transpose(0, 1)
    biased = tuple(values - values.mean(dim=1, keepdim=True) for values in by_channel)
    for left, right in ((stacked, wanted), *((by_channel, biased) if channels else ())):
        if left.shape[1] <= len(names) + 1:
            continue  # anything would fit
        # The minimum-norm solution, since a module may put out all zeros.
        factors = torch.linalg.lstsq(left, right, driver="gelsd").solution  # [., k, 1]
        rest = float((left @ factors - right).norm())
        if rest > allowed:
            continue
        parts = left * factors.mT
        # The stream may be far larger than all that a layer adds to it.
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
    """Factors of channels, float32 [hidden]; None where they are all the same."""
    same = torch.allclose(factors, factors.mean(), rtol=1e-3)
    return None if same else factors.float()


def norm_gains(norm: nn.Module, hidden: int) -> Tensor | None:
    """What a norm multiplies each channel with, float32 [hidden]; None if that is 1 for all.

    Found by trying it on a vector of as many +1 as -1, so that it does not matter how the class
    stores its gains (Gemma adds 1 to them).
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
