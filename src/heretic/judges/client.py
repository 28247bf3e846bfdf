"""A judge behind an OpenAI-compatible API: many replies at once, each paid for once.

The client library is `openai`: it is kept up with the API, and repeats requests on 408, 409, 429,
5xx, timeouts and dropped connections, with exponential back-off and jitter, or after as long as
`Retry-After` asks (up to two minutes).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from heretic.errors import ScorerError
from heretic.judges import answers, asking
from heretic.judges.asking import Request
from heretic.judges.cache import VerdictCache
from heretic.judges.options import JudgeOptions
from heretic.judges.records import Item, Usage, Verdict
from heretic.system.optional import require

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

ANSWERS_READ = 3
"""How often a reply is put before the judge until its answer can be read."""

SAMPLE = Item("What is the capital of France?", "The capital of France is Paris.")
"""What a judge is tried with."""

_SAID_AT_MOST = 200
"""Characters of a server's message that are shown."""

_REMEDIES = {
    400: "Check model, max_tokens_field, temperature and extra_body against what the server takes.",
    401: "Check the key in the variable that api_key_env names.",
    402: "Check the account's balance; what was judged is kept.",
    403: "Check what the key in the variable that api_key_env names may do.",
    404: "Check model, and that endpoint is the base URL (as a rule it ends in /v1).",
    413: "The reply may be too long for the server: set a shorter max_response_length.",
    422: "Check max_tokens_field, temperature and extra_body against what the server takes.",
    429: "Set a lower concurrency or more max_retries, or go on later; what was judged is kept.",
}
_LATER = "Try again later; what was judged is kept."


class EndpointJudge:
    """Puts replies before a language model and reads its verdicts.

    Attributes:
        usage: What it has taken so far.
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
        """One for each item, in order; equal items are judged once.

        Each is kept on disk as soon as it is known. After a failure nothing new is begun, but what
        is under way is waited for, since it is paid for.

        Args:
            on_step: Told (items judged, items to be judged), where any are left to ask about.

        Raises:
            ScorerError: An item got no verdict; the key is missing; the server cannot be used.
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
        """Put a sample before the judge, past the cache: everything but the data is as it will be.

        Raises:
            ScorerError: As `verdicts`.
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
        """Verdicts by key: as many workers as there may be requests at once share one list."""
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
            ScorerError: None could, or none came.
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
            "Set a larger max_tokens, or a judge that keeps to the form it is given.",
        )

    async def _answer(self, client: AsyncOpenAI, body: Request) -> str:
        """The server's answer as it came; without a schema where the server takes none."""
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
        except openai.APIStatusError as error:
            raise self._status_failure(error) from error
        except openai.APITimeoutError as error:
            raise self._failure(
                f"no answer within {self.options.timeout:g} s{self._tries(error)}",
                f"Set a longer timeout or a lower concurrency. {_LATER}",
            ) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._failure(
                f"no connection{self._tries(error)}: {self._said(cause) or type(cause).__name__}",
                f"Check endpoint, and that the server runs. {_LATER}",
            ) from error
        if self._schema_taken:
            self._schema_taken = False
            _log.info("%s takes no JSON schema; answers are read as text", self.options.endpoint)
        return answer

    async def _post(self, client: AsyncOpenAI, body: Request) -> str:
        rest = {key: value for key, value in body.items() if key not in {"model", "messages"}}
        raw = await client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=rest
        )
        text = raw.http_response.text
        self.usage += answers.usage(text) + Usage(retries=raw.retries_taken)
        return text

    def _client(self) -> AsyncOpenAI:
        openai = require("openai", extra="judge", purpose="A judge behind an API", kind=ScorerError)
        client: AsyncOpenAI = openai.AsyncOpenAI(
            base_url=self.options.endpoint,
            api_key=self.options.api_key() or "none",  # the library insists on one
            timeout=self.options.timeout,
            max_retries=self.options.max_retries,
            # Replies go to the address that was named, and to no other.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        return client

    # --- failures --------------------------------------------------------------------------

    def _status_failure(self, error: APIStatusError) -> ScorerError:
        status, after = error.status_code, error.response.headers.get("retry-after")
        wait = f" (Retry-After: {after})" if after else ""
        return self._failure(
            f"HTTP {status}{wait}{self._tries(error)}: {self._said(_words(error))}",
            _REMEDIES.get(status, _LATER),
        )

    def _failure(self, problem: str, remedy: str) -> ScorerError:
        return ScorerError(
            f"The judge {self.options.model} at {self.options.endpoint}: {problem}.", remedy=remedy
        )

    def _tries(self, error: APIStatusError | APIConnectionError) -> str:
        """How often was asked, which the library writes into each request; counted as used."""
        retries = int(error.request.headers.get("x-stainless-retry-count", 0))
        self.usage += Usage(retries=retries)
        return f" after {retries + 1} tries" if retries else ""

    def _said(self, what: object) -> str:
        """A server's words, short, in one line, without the key should it repeat it."""
        text = " ".join(str(what).split())
        key = self.options.api_key()
        text = text.replace(key, "***") if key else text
        return text[:_SAID_AT_MOST].rstrip(".")


def _words(error: APIStatusError) -> object:
    """What a server says of an error, where it says it: OpenAI's form, FastAPI's, or as it is."""
    body = error.body
    if isinstance(body, Mapping):
        return body.get("message") or body.get("detail") or body
    return body or error.response.text or error.response.reason_phrase


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also from within a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
