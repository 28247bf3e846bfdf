"""What went wrong with a request to a server, in words: what it said, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heretic.judges import transport
from heretic.judges.endpoint import Endpoint
from heretic.system.display import safe_line

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError

SAID_AT_MOST = 200
"""Characters of a server's message that are shown at most."""

MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Remedies:
    """What the user of a server can do about its failures.

    Attributes:
        by_status: By HTTP status.
        otherwise: After any other status.
        late: If no answer came in time.
        unreachable: If there was no connection.
        too_long: If the answer was longer than anybody keeps.
    """

    by_status: Mapping[int, str]
    otherwise: str
    late: str
    unreachable: str
    too_long: str


def problem_of(
    error: APIStatusError | APIConnectionError | transport.AnswerTooLongError,
    endpoint: Endpoint,
    remedies: Remedies,
) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    import openai

    if isinstance(error, transport.AnswerTooLongError):
        most = transport.MOST_BYTES // 2**20
        return f"the answer is longer than {most} MiB", remedies.too_long
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {endpoint.timeout:g} s{_tries(error)}", remedies.late
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        words = said(cause, endpoint) or type(cause).__name__
        return f"no connection{_tries(error)}: {words}", remedies.unreachable
    return _of_status(error, endpoint, remedies)


def retries(error: APIStatusError | APIConnectionError) -> int:
    """How often the request was sent again, from the library's header."""
    return int(error.request.headers.get("x-stainless-retry-count", 0))


def said(what: object, endpoint: Endpoint) -> str:
    """A server's message, shortened to one line, with the key masked."""
    key = endpoint.api_key()
    text = key.mask(str(what)) if key else str(what)
    return safe_line(text)[:SAID_AT_MOST].rstrip(".")


def words(body: object) -> object:
    """The message in the body of a server's error: in OpenAI's form, in FastAPI's, or all of it."""
    if isinstance(body, Mapping):
        return body.get("message") or body.get("detail") or body
    return body


def _of_status(error: APIStatusError, endpoint: Endpoint, remedies: Remedies) -> tuple[str, str]:
    status, headers = error.status_code, error.response.headers
    after, place = headers.get("retry-after"), headers.get("location")
    wait = f" (Retry-After: {said(after, endpoint)})" if after else ""
    if status in MOVED and place:
        return (
            f"HTTP {status}: the server names another address, {said(place, endpoint)}",
            "Redirects are not followed; give that address if you trust it.",
        )
    text = words(error.body) or error.response.text or error.response.reason_phrase
    return (
        f"HTTP {status}{wait}{_tries(error)}: {said(text, endpoint)}",
        remedies.by_status.get(status, remedies.otherwise),
    )


def _tries(error: APIStatusError | APIConnectionError) -> str:
    count = retries(error)
    return f" after {count + 1} tries" if count else ""
