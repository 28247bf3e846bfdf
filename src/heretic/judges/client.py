"""A judge behind an OpenAI-compatible API: concurrent requests, each reply paid for once.

The client library is `openai`. It retries requests after status 408, 409, 429 and 5xx, timeouts and
lost connections, with exponential back-off and jitter, or after the time that `Retry-After` states
(up to two minutes).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from heretic.errors import ScorerError
from heretic.judges import answers, asking, transport
from heretic.judges.asking import Request
from heretic.judges.cache import VerdictCache
from heretic.judges.failures import Remedies, problem_of, retries, said
from heretic.judges.options import JudgeOptions
from heretic.judges.records import Item, Usage, Verdict
from heretic.judges.transport import connected
from heretic.system.optional import require
from heretic.system.secrets import masked

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

ANSWERS_READ = 3
"""How often the judge is asked about a reply at most, until its answer can be read."""

SAMPLE = Item("What is the capital of France?", "The capital of France is Paris.")
"""The reply that `check` asks a judge about."""

_LATER = "Try again later; verdicts so far are kept."

_BY_STATUS = {
    400: "Check model, max_tokens_field, temperature and extra_body against the server's API.",
    401: "Check the key in the variable that api_key_env names.",
    402: "Check the account's balance; verdicts so far are kept.",
    403: "Check the permissions of the key in the variable that api_key_env names.",
    404: "Check model, and that endpoint is the base URL (which usually ends in /v1).",
    413: "The reply may be too long for the server: set a shorter max_response_length.",
    422: "Check max_tokens_field, temperature and extra_body against the server's API.",
    429: "Set a lower concurrency or more max_retries, or try later; verdicts so far are kept.",
}
_REMEDIES = Remedies(
    _BY_STATUS,
    otherwise=_LATER,
    late=f"Set a longer timeout or a lower concurrency. {_LATER}",
    unreachable=f"Check endpoint, and that the server is running. {_LATER}",
    too_long="Check endpoint: this is no answer of a judge.",
)


class EndpointJudge:
    """Asks a language model about replies and reads its verdicts.

    Attributes:
        options: The options.
        usage: Requests and tokens used so far.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self.usage = Usage()
        self._cache = VerdictCache(options.cache_folder)
        self._schema_taken = options.structured != "text"

    def verdicts(
        self,
        items: Sequence[Item],
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Verdict]:
        """One verdict per item, in order; equal items are judged once.

        Each verdict is stored on disk as soon as it is known. After a failure no request is begun,
        but pending requests are awaited, because they are paid for.

        Args:
            items: The replies to judge.
            on_step: Called with (items judged, items to judge), without items that are stored.

        Raises:
            ScorerError: An item got no verdict, the key is missing, or the server cannot be used.
        """
        wanted: dict[str, Request] = {}
        keys = []
        for item in items:
            body = asking.request(item, self.options)
            key = asking.cache_key(body, self.options)
            wanted[key] = body
            keys.append(key)
        known = self._known(wanted)
        missing = {key: body for key, body in wanted.items() if key not in known}
        self.usage += Usage(cached=len(known))
        if missing:
            known |= _run(self._judge(missing, on_step))
        return [known[key] for key in keys]

    def check(self) -> None:
        """Ask the judge about a sample, without the cache, to test the options and the server.

        Raises:
            ScorerError: The judge gives no verdict; see `verdicts`.
        """
        self._cache.get([])
        _run(self._try_sample())

    def _known(self, keys: Mapping[str, Request]) -> dict[str, Verdict]:
        kept = self._cache.get(keys)
        read = {key: answers.stored(text, self.options.labels) for key, text in kept.items()}
        return {key: verdict for key, verdict in read.items() if verdict is not None}

    # --- asking ----------------------------------------------------------------------------

    async def _try_sample(self) -> None:
        async with self._client() as client:
            await self._ask(client, asking.request(SAMPLE, self.options))

    async def _judge(
        self, requests: Mapping[str, Request], on_step: Callable[[int, int], None]
    ) -> dict[str, Verdict]:
        """Verdicts by key, from `concurrency` workers that share one list of requests."""
        found: dict[str, Verdict] = {}
        failures: list[Exception] = []
        left = iter(requests.items())

        async def work(client: AsyncOpenAI, left: Iterator[tuple[str, Request]]) -> None:
            for key, body in left:
                if failures:
                    return
                try:
                    found[key] = await self._ask(client, body)
                    self._cache.put(key, answers.storable(found[key]))
                    on_step(len(found), len(requests))
                except Exception as error:  # raised below, when the others have finished
                    failures.append(error)

        async with self._client() as client:
            workers = min(self.options.concurrency, len(requests))
            await asyncio.gather(*(work(client, left) for _ in range(workers)))
        if failures:
            raise failures[0]
        return found

    async def _ask(self, client: AsyncOpenAI, body: Request) -> Verdict:
        """Ask until an answer can be read.

        Raises:
            ScorerError: No answer could be read, or none arrived.
        """
        problem = ""
        for attempt in range(ANSWERS_READ):
            self.usage += Usage(retries=1 if attempt else 0)
            answer = await self._answer(client, body)
            try:
                return answers.verdict(answers.content(answer), self.options.labels)
            except answers.UnreadableAnswerError as error:
                problem = str(error)
        raise self._failure(
            f"{problem} (asked {ANSWERS_READ} times)",
            "Set a larger max_tokens, or choose a judge that follows the required form.",
        )

    async def _answer(self, client: AsyncOpenAI, body: Request) -> str:
        """The body of the server's answer; asked again without a schema if it takes none."""
        import openai

        try:
            if not self._schema_taken:
                return await self._post(client, body)
            form = {"response_format": asking.response_format(self.options)}
            try:
                return await self._post(client, {**form, **body})
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if self.options.structured == "schema":
                    raise
                answer = await self._post(client, body)
        # Without their causes: those hold the request with its key, and what the server said of it.
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            self.usage += Usage(retries=retries(error))
            raise self._failure(*problem_of(error, self.options, _REMEDIES)) from None
        except transport.AnswerTooLongError as error:
            raise self._failure(*problem_of(error, self.options, _REMEDIES)) from None
        if self._schema_taken:
            self._schema_taken = False
            _log.info(
                "%s does not take a JSON schema; answers are read as text",
                self.options.shown_endpoint,
            )
        return answer

    async def _post(self, client: AsyncOpenAI, body: Request) -> str:
        rest = {key: value for key, value in body.items() if key not in {"model", "messages"}}
        raw = await client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=rest
        )
        text = raw.http_response.content.decode("utf-8", errors="replace")
        self.usage += answers.usage(text) + Usage(retries=raw.retries_taken)
        return masked(text)  # the server may have repeated the key

    def _client(self) -> AsyncOpenAI:
        openai = require("openai", extra="judge", purpose="A judge behind an API", kind=ScorerError)
        http = transport.bounded_client(self.options.timeout)
        try:
            client: AsyncOpenAI = connected(openai.AsyncOpenAI, self.options, http)
        except (ValueError, OSError, transport.http().InvalidURL) as error:
            words = said(error, self.options)
            raise self._failure(
                f"not an address that can be used: {words}", "Check endpoint."
            ) from None
        return client

    # --- failures --------------------------------------------------------------------------

    def _failure(self, problem: str, remedy: str) -> ScorerError:
        return ScorerError(
            f"The judge {self.options.model} at {self.options.shown_endpoint}: {problem}.",
            remedy=remedy,
        )


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, even inside a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
