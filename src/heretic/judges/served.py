"""Chat with a model on a server with an OpenAI-compatible API, such as vLLM, Ollama, LM Studio.

The form of a stream: "Server-sent events" in the HTML standard (html.spec.whatwg.org, 9.2); that of
its events: platform.openai.com/docs/api-reference/chat-streaming. Reasoning is in a field of its
own that servers name differently; it is shown between the tags of most models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from heretic.errors import HereticError, ModelError
from heretic.judges import transport
from heretic.judges.endpoint import Endpoint
from heretic.judges.failures import Remedies, problem_of, said, words
from heretic.system.display import safe_line
from heretic.system.optional import require

if TYPE_CHECKING:
    from openai import OpenAI

Message = Mapping[str, str]

SECONDS = 300.0
"""Time to wait for the next piece of a reply: a server may load the model first."""

RETRIES = 2

SHOWN_NAMES = 20
"""Models of a server that an error lists at most."""

BEGIN_REASONING, END_REASONING = "<think>\n", "\n</think>\n\n"

_DONE = "[DONE]"
_EVENT = re.compile(rb"\s*(data|event):")

_CUT = {
    "length": (
        "the reply was cut at the most tokens that it allows",
        "Allow it more, or /reset starts a new conversation.",
    ),
    "content_filter": ("its content filter stopped the reply", "Ask another server."),
}
"""Ends of a reply that are not its own."""

_ADDRESS = "Check the address, which usually ends in /v1"

_REMEDIES = Remedies(
    {
        401: "Name the variable that holds the key by --api-key-env.",
        403: "Name the variable that holds a key with permission by --api-key-env.",
        404: f"{_ADDRESS}, and the name given by --served-model.",
        413: "/reset starts a new conversation.",
        400: "If the chat has become too long, /reset starts a new conversation.",
    },
    otherwise="Try again later, or look at what the server logs.",
    late="Try again: the server may be loading the model.",
    unreachable=f"{_ADDRESS}, and that the server is running.",
    too_long=f"{_ADDRESS}: this is no reply.",
)


class Served(Endpoint):
    """A model on a server."""

    failure: ClassVar[type[HereticError]] = ModelError
    key_option: ClassVar[str] = "--api-key-env"

    model: str = Field(default="", description="The model's name there; empty: its only one.")
    timeout: float = Field(default=SECONDS, gt=0.0, description="Seconds to the next piece.")
    max_retries: int = Field(default=RETRIES, ge=0, description="Retries until a reply begins.")


class _Listed(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Listed]


class _Text(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def spoken(self) -> str:
        return self.content or self.refusal or ""

    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class _Choice(BaseModel):
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Event(BaseModel):
    choices: list[_Choice] = []


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def served(address: str, model: str = "", api_key_env: str = "") -> Served:
    """The server at an address.

    Raises:
        ModelError: The address or the name of the variable is malformed.
    """
    try:
        return Served(endpoint=address, model=model, api_key_env=api_key_env)
    except ValidationError as error:
        (first, *_) = error.errors()
        option = {"endpoint": "The address", "api_key_env": "--api-key-env"}
        what = option.get(str(first["loc"][0]), str(first["loc"][0]))
        text = first["msg"].removeprefix("Value error, ")
        raise ModelError(
            f"{what} {text}.", remedy="For example: heretic chat http://127.0.0.1:8000/v1"
        ) from None


class ServedModel:
    """A model that answers over HTTP.

    Args:
        server: Where it is. Without a model's name it must have one model only.

    Attributes:
        name: The model's name at the server.

    Raises:
        ModelError: The server cannot be used, or has several models and none is named.
    """

    def __init__(self, server: Served) -> None:
        self.server = server
        self._greedy = True
        self._client = self._connected()
        self.name = server.model or self._only_model()

    def sent(self) -> str:
        """What is sent where, in one line."""
        parts = urlsplit(self.server.endpoint)
        key = self.server.api_key_env
        along = f"with the key in {key}" if key else "without a key"
        text = f"Chats are sent to {parts.netloc} (model {safe_line(self.name)}), {along}"
        open_ = parts.scheme == "http" and not _is_this_machine(parts.hostname or "")
        return safe_line(f"{text}, unencrypted." if open_ else f"{text}.")

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """The likeliest reply, as it comes.

        Raises:
            ModelError: The server gives none, or it breaks off.
        """
        with ExitStack() as stack:
            raw = self._asked(lambda: self._opened(stack, messages))
            yield from _joined(self._texts(raw))

    # --- requests --------------------------------------------------------------------------

    def _connected(self) -> OpenAI:
        purpose = "A chat with a server"
        openai = require("openai", extra="judge", purpose=purpose, kind=ModelError)
        http = transport.streaming_client(self.server.timeout)
        try:
            client: OpenAI = transport.connected(openai.OpenAI, self.server, http)
        except (ValueError, OSError, transport.http().InvalidURL) as error:
            problem = f"not an address that can be used: {said(error, self.server)}"
            raise self._failure(problem, f"{_ADDRESS}.") from None
        return client

    def _only_model(self) -> str:
        """The name of the server's only model."""
        remedy = "Name the model by --served-model NAME."
        body = self._asked(lambda: self._client.models.with_raw_response.list().http_response.text)
        try:
            names = [row.id for row in _Models.model_validate_json(body).data]
        except ValidationError:
            raise self._failure(
                "what it answers is no list of models", f"{_ADDRESS}. {remedy}"
            ) from None
        if len(names) == 1:
            return names[0]
        more = f", and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        shown = ", ".join(safe_line(name) for name in names[:SHOWN_NAMES]) or "none"
        raise self._failure(f"it has {len(names)} models: {shown}{more}", remedy)

    def _opened(self, stack: ExitStack, messages: Sequence[Message]) -> Any:
        """The answer to a chat, of which a stream is still to come; greedy where that is taken."""
        import openai

        ask = self._client.chat.completions.with_streaming_response.create
        while True:
            options: Any = {"temperature": 0.0} if self._greedy else {}
            given: Any = [dict(message) for message in messages]
            answer = ask(model=self.name, messages=given, stream=True, **options)
            try:
                return stack.enter_context(answer).http_response
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._greedy or "temperature" not in str(error.body):
                    raise
                self._greedy = False  # some models have one temperature only

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What a request gives.

        Raises:
            ModelError: It fails.
        """
        import openai

        try:
            return ask()
        # Without their causes: those hold the request with its key.
        except (
            openai.APIStatusError,
            openai.APIConnectionError,
            transport.AnswerTooLongError,
        ) as error:
            raise self._failure(*problem_of(error, self.server, _REMEDIES)) from None

    def _failure(self, problem: str, remedy: str) -> ModelError:
        return ModelError(f"The server at {self.server.shown_endpoint}: {problem}.", remedy=remedy)

    # --- the answer ------------------------------------------------------------------------

    def _texts(self, raw: Any) -> Iterator[str]:
        """The texts in an answer: of a stream as it comes, of a whole answer at once."""
        library = transport.http()
        streams = raw.headers.get("content-type", "").lower().startswith(transport.STREAM)
        parts = transport.bounded(raw.iter_raw()) if streams else iter([raw.content])
        events = _events(parts) if streams or _EVENT.match(raw.content) else iter(_whole(parts))
        try:
            yield from self._read(events)
        except library.TimeoutException:
            problem = f"no further piece of the reply within {self.server.timeout:g} s"
            raise self._failure(problem, _REMEDIES.otherwise) from None
        except library.TransportError as error:
            problem = f"the reply broke off: {said(error, self.server) or type(error).__name__}"
            raise self._failure(problem, _REMEDIES.otherwise) from None
        except transport.AnswerTooLongError as error:
            raise self._failure(*problem_of(error, self.server, _REMEDIES)) from None

    def _read(self, events: Iterator[str]) -> Iterator[str]:
        """The texts in events.

        Raises:
            ModelError: An event is none or tells of an error, or the last one is missing.
        """
        reasons, ended = False, ""
        for data in events:
            if data == _DONE:
                ended = ended or _DONE
                break
            choice = self._choice(data)
            text = choice.delta or choice.message or _Text()
            thought, spoken = text.thought(), text.spoken()
            if thought:
                yield thought if reasons else f"{BEGIN_REASONING}{thought}"
                reasons = True
            if spoken:
                yield f"{END_REASONING}{spoken}" if reasons else spoken
                reasons = False
            ended = choice.finish_reason or ended
        if not ended:
            raise self._failure("the reply broke off before its end", _REMEDIES.otherwise)
        if ended in _CUT:
            raise self._failure(*_CUT[ended])

    def _choice(self, data: str) -> _Choice:
        """What an event holds of the reply; an empty one if nothing, as in counts of tokens."""
        try:
            table = json.loads(data)
        except (ValueError, RecursionError):
            table = None
        if isinstance(table, dict) and (table.get("error") or table.get("object") == "error"):
            text = words(table.get("error") or table)
            raise self._failure(
                f"it tells of an error: {said(text, self.server)}", _REMEDIES.otherwise
            )
        try:
            choices = _Event.model_validate(table).choices
        except ValidationError:
            problem = f"what it sent is no part of a reply: {said(data, self.server) or 'nothing'}"
            raise self._failure(problem, f"{_ADDRESS}.") from None
        return choices[0] if choices else _Choice()


def _events(parts: Iterator[bytes]) -> Iterator[str]:
    """The data of server-sent events, from pieces that are cut anywhere."""
    data: list[str] = []
    for line in _lines(parts):
        if not line and data:
            yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
    if data:
        yield "\n".join(data)


def _lines(parts: Iterator[bytes]) -> Iterator[str]:
    """Lines, decoded when they are whole: a character may be cut between two pieces."""
    held = bytearray()
    for part in parts:
        held += part
        if b"\n" in part:
            *whole, rest = bytes(held).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r").decode("utf-8", errors="replace")
            held = bytearray(rest)
    yield held.decode("utf-8", errors="replace")


def _whole(parts: Iterator[bytes]) -> list[str]:
    """The one event of an answer that was not streamed."""
    return [b"".join(parts).decode("utf-8", errors="replace"), _DONE]


def _joined(texts: Iterator[str]) -> Iterator[str]:
    """Texts in which no half of a UTF-16 pair stands alone: some servers cut between the two."""
    held = ""
    for piece in texts:
        text = held + piece
        held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = text.removesuffix(held)
        if text:
            yield text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_this_machine(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
