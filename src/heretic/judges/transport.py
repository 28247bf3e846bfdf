"""The HTTP client of a judge: each answer has one deadline and a largest size.

The timeouts of HTTP libraries count from one byte to the next, so a server that sends a byte now
and then is waited for without end; and whatever it sends is kept in memory.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from heretic.errors import ScorerError
from heretic.system.optional import require

if TYPE_CHECKING:
    from types import ModuleType

MOST_BYTES = 16 * 2**20
"""Size of the largest answer: a verdict has some hundred bytes, reasoning some hundred thousand."""

_KEPT_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id")


class AnswerTooLongError(Exception):
    """An answer is longer than `MOST_BYTES`; it was not read to its end."""


def http() -> ModuleType:
    """The HTTP library that the client library uses.

    Raises:
        ScorerError: `openai` is not installed.
    """
    openai = require("openai", extra="judge", purpose="A judge behind an API", kind=ScorerError)
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
            kept = {
                name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers
            }
            return library.Response(
                response.status_code,
                # Nothing else that the server says about the text counts: not its encoding either.
                headers={**kept, "content-type": "application/json; charset=utf-8"},
                content=data,
                request=request,
            )

    return BoundedClient(
        follow_redirects=False,
        timeout=seconds,
        headers={"accept-encoding": "identity"},  # a few bytes can unpack to gigabytes
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
