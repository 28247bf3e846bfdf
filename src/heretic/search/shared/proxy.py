"""Optuna's gRPC proxy, asked with a time limit: its client's calls have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
from optuna.storages._grpc.client import GrpcClientCache

_LARGE = 5.0
"""How many times as long a call may take that fetches trials, with what a run begins with."""

_OF_TRIALS = "GetTrials"

Deadline = Callable[[], float]
"""Tells how many seconds a call may take that begins now."""


class Proxy(GrpcStorageProxy):
    """As Optuna's, but a call that gets no answer raises an error.

    Args:
        deadline: Asked before each call.
    """

    def __init__(self, host: str, port: int, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        super()._setup()
        limited = grpc.intercept_channel(self._channel, _Limited(self._deadline))
        self._stub = StorageServiceStub(limited)
        self._cache = GrpcClientCache(self._stub)


@dataclass(frozen=True, slots=True)
class _Call(grpc.ClientCallDetails):  # type: ignore[misc]  # gRPC has no types
    """A call as gRPC wants to have it described."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Limited(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Gives each call its time limit."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def intercept_unary_unary(self, continuation: Any, call: Any, request: Any) -> Any:
        """Carry the call on, with the limit."""
        seconds = self._deadline()
        if call.method.endswith(_OF_TRIALS):
            seconds *= _LARGE
        return continuation(
            _Call(
                call.method,
                seconds,
                call.metadata,
                call.credentials,
                call.wait_for_ready,
                call.compression,
            ),
            request,
        )
