"""The HTTP clients of judges and of chats: answers have a largest size, whole ones a deadline.

The timeouts of HTTP libraries count from one byte to the next, so a server that sends a byte now
and then is waited for without end; and whatever it sends is kept in memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from heretic.errors import ScorerError
from heretic.judges.endpoint import Endpoint
from heretic.system.optional import require

if TYPE_CHECKING:
    from types import ModuleType

MOST_BYTES = 16 * 2**20
"""Size of the largest answer: a verdict has some hundred bytes, reasoning some hundred thousand."""

_KEPT_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "location")

STREAM = "text/event-stream"


_OPTIONS: Any = {
    "follow_redirects": False,
    "headers": {"accept-encoding": "identity"},  # a few bytes can unpack to gigabytes
}


class AnswerTooLongError(Exception):
    """An answer is longer than `MOST_BYTES`; it was not read to its end."""


def http() -> ModuleType:
    """The HTTP library that the client library uses.

    Raises:
        ScorerError: `openai` is not installed.
    """
    openai = require("openai", extra="judge", purpose="A server behind an API", kind=ScorerError)
    (base,) = (
        kind for kind in openai.DefaultAsyncHttpxClient.__mro__ if kind.__name__ == "AsyncClient"
    )
    return sys.modules[base.__module__.partition(".")[0]]


def bounded_client(seconds: float) -> Any:
    """An HTTP client whose answers arrive whole within a time and a size, or not at all.

    Redirects are not followed: replies must go only to the address in the options.

    Args:
        seconds: From the beginning of a request to the last byte of its answer.
    """
    library = http()

    class BoundedClient(library.AsyncClient):  # type: ignore[name-defined,misc]
        """Reads every answer before it is handed on."""

        async def send(self, request: Any, **options: Any) -> Any:
            """Send a request; its answer is complete.

            Raises:
                TimeoutException: Of the library, which is tried again.
                AnswerTooLongError: The answer is too long.
            """
            options["stream"] = True
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **options)
                    try:
                        data = await _whole(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise library.ReadTimeout("no whole answer in time", request=request) from None
            return _answer(library, response, data, request)

    return BoundedClient(**_OPTIONS, timeout=seconds)


def streaming_client(seconds: float) -> Any:
    """As `bounded_client`, but for one thread, and an event stream is handed on as it comes.

    Args:
        seconds: For a whole answer, and from one piece of a stream to the next.
    """
    library = http()

    class StreamingClient(library.Client):  # type: ignore[name-defined,misc]
        """Reads every answer that is no stream before it is handed on."""

        def send(self, request: Any, **options: Any) -> Any:
            """Send a request; its answer is complete, or an event stream.

            Raises:
                TimeoutException: Of the library, which is tried again.
                AnswerTooLongError: The answer is too long.
            """
            options["stream"] = True
            end = time.monotonic() + seconds
            response = super().send(request, **options)
            kind = response.headers.get("content-type", "")
            if response.is_success and kind.lower().startswith(STREAM):
                return response
            data = bytearray()
            try:
                for part in bounded(response.iter_bytes()):
                    data += part
                    if time.monotonic() > end:
                        raise library.ReadTimeout("no whole answer in time", request=request)
            finally:
                response.close()
            return _answer(library, response, bytes(data), request)

    return StreamingClient(**_OPTIONS, timeout=seconds)


def connected(kind: Callable[..., Any], endpoint: Endpoint, http_client: Any) -> Any:
    """A client of the library for an endpoint.

    Args:
        kind: `OpenAI` or `AsyncOpenAI`.
        http_client: One of this module, of the same sort.

    Raises:
        HereticError: The key is missing.
        ValueError, OSError, InvalidURL: The address cannot be used.
    """
    base, query = endpoint.base_and_query()
    key = endpoint.api_key()
    client = kind(
        base_url=base,
        default_query=query,
        api_key=key.reveal() if key else "none",  # the library requires one
        timeout=endpoint.timeout,
        max_retries=endpoint.max_retries,
        http_client=http_client,
    )
    # The library takes these from the environment; they are meant for one service only.
    client.organization = client.project = None
    return client


def bounded(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Parts of an answer, as long as they are not too long together.

    Raises:
        AnswerTooLongError: They are longer than `MOST_BYTES`.
    """
    size = 0
    for part in parts:
        size += len(part)
        if size > MOST_BYTES:
            raise AnswerTooLongError
        yield part


def _answer(library: ModuleType, response: Any, data: bytes, request: Any) -> Any:
    """A complete answer of the library's kind.

    Nothing else that the server says about the text counts: not its encoding either.
    """
    kept = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return library.Response(
        response.status_code,
        headers={**kept, "content-type": "application/json; charset=utf-8"},
        content=data,
        request=request,
    )


async def _whole(response: Any) -> bytes:
    """The body of an answer.

    Raises:
        AnswerTooLongError: It is longer than `MOST_BYTES`.
    """
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > MOST_BYTES:
            raise AnswerTooLongError
    return bytes(data)
