"""Steps captured as CUDA graphs: the device repeats them without a launch for every kernel.

All of CUDA in the engine is here. Only shapes that were met are captured, each once: the first step
of a shape runs as it is, which also warms the device up, then the same step is captured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from heretic.engine.shapes import Shape
from heretic.errors import is_of_interruption
from heretic.model.failures import reason

_log = logging.getLogger(__name__)

Step = Callable[[], None]
"""Work on fixed memory, without arguments and results."""


class Recorder(Protocol):
    """Records a step, so that it can be repeated on the same memory."""

    def warm(self, step: Step) -> None:
        """Run a step as the recording will need it to have run."""

    def record(self, step: Step) -> Step:
        """Record a step without running it; the result runs it."""


class CudaRecorder:
    """Captures CUDA graphs that share one pool of memory, since they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm(self, step: Step) -> None:
        """Run a step on the stream that captures, after all work so far and before what follows."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        current.wait_stream(self._stream)

    def record(self, step: Step) -> Step:
        """Capture a step. It allocates from the pool and must not wait for the device.

        Raises:
            RuntimeError: It waits for the device, or does what a graph cannot hold.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                step()
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves its own stream in force
        return graph.replay


def recorder_for(model: nn.Module) -> Recorder | None:
    """What records steps of this model; None where steps run one kernel after another."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or devices.pop().type != "cuda" or torch.version.hip is not None:
        return None
    return CudaRecorder()


class Graphs:
    """Recorded steps by shape. If a step cannot be recorded, all run as they are from then on.

    Args:
        say: Called with the reason if a step cannot be recorded.
    """

    def __init__(self, recorder: Recorder, say: Callable[[str], None]) -> None:
        self._recorder: Recorder | None = recorder
        self._say = say
        self._version = 0
        self._kept: dict[Shape, Step] = {}

    def clear(self) -> None:
        """Forget all recordings; needed when any memory that they use is replaced."""
        self._kept.clear()

    def run(self, shape: Shape, version: int, step: Step) -> None:
        """Run a step once, by its recording if there is one.

        Args:
            version: That of the edits' memory; another one than before ends all recordings.
        """
        if version != self._version:
            self._version = version
            self.clear()
        if self._recorder is None:
            step()
        elif shape in self._kept:
            self._kept[shape]()
        else:
            self._recorder.warm(step)
            self._record(self._recorder, shape, step)

    def _record(self, recorder: Recorder, shape: Shape, step: Step) -> None:
        try:
            self._kept[shape] = recorder.record(step)
        except Exception as error:  # models do many things that a graph cannot hold
            if is_of_interruption(error):
                raise
            # Ending a capture that has failed raises another error, which says less.
            first = error.__context__ or error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            _log.warning("A decoding step could not be captured", exc_info=True)
            self._recorder = None
            self.clear()
            self._say(
                f"Decoding steps are launched kernel by kernel, which is slower: {reason(first)}"
            )


def on_its_way(tokens: Tensor) -> Callable[[], list[list[int]]]:
    """Start a copy of tokens to main memory; the result waits for this copy, not for later work."""
    if tokens.device.type != "cuda":
        return tokens.clone().tolist
    copy = tokens.to("cpu", non_blocking=True)  # into pinned memory
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def arrived() -> list[list[int]]:
        event.synchronize()
        found: list[list[int]] = copy.tolist()
        return found

    return arrived
