"""What a worker and whoever started it say to each other, one JSON object a line.

Requests come on the worker's standard input, messages go to its standard output:

| line | says |
| --- | --- |
| `{"version": 1, "id": 7, "op": "chat", ...}` | a request; `op` is the name of a class here in |
| | small letters, the rest are its fields |
| `{"type": "answer", "id": 7, "result": {...}}` | request 7 is done |
| `{"type": "answer", "id": 7, "error": {...}}` | it failed: `kind`, `message`, `remedy` |
| `{"type": "piece", "id": 7, "text": "..."}` | the next piece of a reply |
| `{"type": "state", "state": "searching", ...}` | the worker's state has changed: a `State` |
| `{"type": "event", "event": "Notice", ...}` | an event before the run folder is known; from then |
| | on its events.jsonl has them (`heretic.runs.events`) |

Requests are carried out one at a time, in their order. A search takes them between two batches of
trials, so that they wait at most one batch. `Pause`, `Resume`, `Stop`, `Cancel` and `Quit` are
answered at once; the state shows when they take effect.

The end of standard input means that nobody listens any more: the worker then stops after its
batch, as after `Quit`, with everything kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from heretic.errors import HereticError

VERSION = 1
"""Of this protocol; a worker refuses requests of another."""

StateName = Literal[
    "starting", "idle", "loading", "ready", "searching", "paused", "stopped", "dead"
]
"""`starting`: imports; `idle`: nothing is open; `loading`: a run is being opened; `ready`: a run is
open, and no search is on its way; `stopped`: the process has ended as it was asked to; `dead`: it
has ended otherwise. The last two are said by the client alone."""

Which = Literal["evaluation", "held_out"]
"""A set of prompts: those of the search, or those that neither directions nor search have seen."""

Strategy = Literal["merge", "adapter"]

Saved = Literal["merge", "adapter", "gguf"]
"""What is saved: with `gguf` whole edited weights, and files for llama.cpp in `FOLDER-gguf`."""

_STRICT = ConfigDict(extra="forbid", strict=True)


class ProtocolError(HereticError):
    """A line is no request of this protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Describe a model from its configuration: what would be edited, and the memory of a search.

    Result: as `heretic inspect --json`, with `device` (`name`, `memory` in bytes) and `fits`.

    Attributes:
        settings: At least the model.
        demo: Whether they change those of the demo.
        prompt_tokens: Tokens of a prompt, template included, for which memory is told.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    settings: dict[str, Any] = field(default_factory=dict)
    demo: bool = False
    prompt_tokens: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Read the prompt sets of some settings.

    Result: `sets`, by name (`good`, `bad`, `good_evaluation`, `bad_evaluation`, `protected`,
    `spared`, `good_held_out`, `bad_held_out`; empty ones are left out) a table with `count` and
    `first`, a list of `user`, `system` and `category`.

    Attributes:
        settings: As for `Open`; a model need not be named.
        demo: Whether they change those of the demo.
        first: Number of prompts of each set that are shown.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    settings: dict[str, Any] = field(default_factory=dict)
    demo: bool = False
    first: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Lock a run, load its model, and do everything up to the search.

    Either `run` or `settings` says which. A worker opens one run; after a failure it may try again.

    Result: what `Front` gives, and `run` (path), `settings` (without secrets and consents),
    `trials` (complete ones), `n_trials` (wanted), `baseline` (scores), `held_out` (whether there
    are such prompts), `batch` (trials of a batch), `tokens` (new tokens of a reply in the search).

    Attributes:
        settings: By their names, nested as in TOML; the environment and config.toml lie below them,
            as they lie below the command line. What lets code of others run, or sends data away,
            has to stand here. With `run`, what the run leaves open, as for `heretic export RUN`.
            `checkpoint_action` says what becomes of a run of the same settings: it is continued,
            with `restart` its trials are deleted first. `force` searches for what hardly shows.
        run: Folder of a run that exists.
        demo: Whether `settings` change those of the demo.
        trust_plugins: Whether the run may name scorers from outside Heretic.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    settings: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    demo: bool = False
    trust_plugins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Begin the search of the open run, or go on with it. Answered when it begins.

    Attributes:
        n_trials: Complete trials of the run to end with; by default as its settings say. Named, it
            is reached whether the front grows or not, as by "more trials" in the terminal's menu.
        timed: Whether a time limit counts.
        time_limit: How long the search may take, such as `2h`; by default as the settings say,
            where the loading counts too if the search is the first one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    n_trials: int | None = None
    timed: bool = True
    time_limit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Hold the search before its next batch."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Let a search go on that was paused, or was to pause."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the search after its batch; or the loading of a run, at its next step.

    The run can go on later. After a search the model stays loaded.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Give up a request that waits or is being carried out, which is answered by an error.

    A chat ends at its next piece, with the text so far as its result. Other work ends at its next
    sign of progress.

    Attributes:
        request: Its number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The front of the open run, in the order in which it is shown.

    Result: `front`, a row for each trial: `trial` (its number), `names` (`knee` and so on),
    `scores` (a list) and `plan`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Greedy replies to evaluation prompts by the original and by trials.

    Result: `prompts`, a list of `user`, `system` and `category`; `replies`, by `original` and the
    number of each trial a list of `text`, `label` and `span`; `judged`, whether labels count in
    this run's search.

    Attributes:
        trials: Numbers of trials.
        set: Which evaluation prompts.
        first: Number of prompts.
        tokens: Most new tokens of a reply; by default as in the search.
        original: Whether the original replies too.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    trials: list[int]
    set: Literal["bad", "good"] = "bad"
    first: int = 5
    tokens: int | None = None
    original: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The next reply of a conversation, in pieces, sampled as the model's own configuration says.

    For original and edited side by side, send two of them: the search waits for both. Result:
    `text`, `cancelled`.

    Attributes:
        messages: The conversation, a user's message last.
        trial: Number of the trial; None for the original.
        strength: Factor of the trial's edit: 0 is the original, 1 the trial.
        tokens: Most new tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    messages: list[Message]
    trial: int | None = None
    strength: float = 1.0
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score a trial and the original again, on other prompts or with longer replies.

    Result: `before` and `after`, lists of scores (`name`, `value`, `display`, `interval`, ...);
    `good` and `bad`, the numbers of prompts; `tokens`; `warnings`, sentences. Replies longer than
    the search's are also scored for late refusals and broken replies.

    Attributes:
        trial: Its number.
        prompts: Which prompts.
        first: At most so many of each set, the first ones; None for all.
        tokens: New tokens of a reply; by default as in the search.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    trial: int
    prompts: Which = "evaluation"
    first: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Save a trial's model, as the terminal's menu does: scored again, verified from disk, audited.

    Result: `folder`, `rows` (scores by `original`, `in the search`, `from disk` and, where there
    are held-out prompts, `original, held out` and `held out`), `compared`; with `gguf` also
    `gguf`: as `heretic gguf --json`.

    Attributes:
        trial: Its number.
        folder: Where to: missing or empty.
        replaces: Whether it may also hold an earlier export, which is replaced.
        strategy: `merge`, `adapter` or `gguf`.
        gguf_types: Types of the files for llama.cpp; by default as the settings say.
        long_prompts: Prompts of each set that get long replies; None for all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    trial: int
    folder: str
    replaces: bool = False
    strategy: Saved = "merge"
    gguf_types: list[str] = field(default_factory=list)
    long_prompts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Save a trial's model and upload it to the Hub, with the login of this machine.

    Result: `url`.

    Attributes:
        trial: Its number.
        repository: `USER/NAME`, or a name of the user's own.
        private: Whether the repository is private.
        strategy: `merge` or `adapter`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    trial: int
    repository: str
    private: bool = True
    strategy: Strategy = "merge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quit:
    """End the worker: a search after its batch, other work when it is done."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


Work = Inspect | Preview | Open | Search | Front | Sample | Chat | Score | Save | Upload
"""Requests that wait for their turn."""

Control = Pause | Resume | Stop | Cancel | Quit
"""Requests that are answered at once."""

Request = Work | Control

OPERATIONS: Mapping[str, type[Request]] = {
    kind.__name__.lower(): kind for kind in (*get_args(Work), *get_args(Control))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a worker is doing.

    Attributes:
        asked: What takes effect after the batch: `pause`, `stop` or `quit`; None for nothing.
        run: Folder of the open run.
        doing: Operation of the request that is being carried out; None if there is none.
        waiting: Number of requests that wait.
        reason: Why the last search ended, as in `events.SearchFinished`; None before that.
        problem: What went wrong in the search that failed last, with the remedy.
        status: Exit status of a worker that has ended; negative for a signal.
    """

    state: StateName
    asked: str | None = None
    run: str | None = None
    doing: str | None = None
    waiting: int = 0
    reason: str | None = None
    problem: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed.

    Attributes:
        kind: Name of a class in `heretic.errors`; `Cancelled`; or `Bug`, whose traceback is logged.
    """

    kind: str
    message: str
    remedy: str | None = None


def encoded(number: int, request: Request) -> str:
    """The line of a request, with its end."""
    head = {"version": VERSION, "id": number, "op": type(request).__name__.lower()}
    return json.dumps(head | asdict(request)) + "\n"


def decoded(line: str | bytes) -> tuple[int, Request]:
    """The number of a request, and the request.

    Raises:
        ProtocolError: The line is none; `number` of the error is that of the request, if it has
            one.
    """
    row = _object(line)
    number = row.pop("id", None)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ProtocolError("A request has no number.", remedy="Give it one: id.")
    try:
        return number, _request(row)
    except ProtocolError as error:
        raise NumberedError(number, error) from error


class NumberedError(ProtocolError):
    """A line that is no request, but has a number.

    Attributes:
        number: The number.
    """

    def __init__(self, number: int, error: ProtocolError) -> None:
        super().__init__(error.message, remedy=error.remedy)
        self.number = number


def _object(line: str | bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("A request is not JSON.") from error
    if not isinstance(row, dict):
        raise ProtocolError("A request is not a JSON object.")
    return row


def _request(row: dict[str, Any]) -> Request:
    version, name = row.pop("version", None), row.pop("op", None)
    if version != VERSION:
        raise ProtocolError(
            f"A request is of version {version!r} of the protocol, and this worker of {VERSION}.",
            remedy="Start the page and its worker from the same installation.",
        )
    kind = OPERATIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"There is no request {name!r}.")
    try:
        found: Request = TypeAdapter(kind).validate_json(json.dumps(row))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or name
        raise ProtocolError(f"Field {where} of the request {name}: {first['msg']}.") from error
    return found


def state_of(row: Mapping[str, Any]) -> State:
    """The state that a message says; unknown fields, of a later release, are left out.

    Raises:
        TypeError: It says none.
    """
    known = {one.name for one in fields(State)}
    return State(**{name: value for name, value in row.items() if name in known})
