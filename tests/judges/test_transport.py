"""Answers that do not end, are too long or too deep: errors, in bounded time and memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.judge_server import MODEL, Server, serve

from heretic.errors import ScorerError
from heretic.judges import answers
from heretic.judges.client import EndpointJudge
from heretic.judges.options import JudgeOptions
from heretic.judges.transport import MOST_BYTES


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def judge(server: Server, place: Path, **values: Any) -> EndpointJudge:
    given = {"endpoint": server.url, "model": MODEL, "cache_folder": place, "max_retries": 0}
    return EndpointJudge(JudgeOptions(**{**given, **values}))


def test_an_answer_that_trickles_has_a_deadline(server: Server, tmp_path: Path):
    server.script = ["trickle"]
    with pytest.raises(ScorerError, match=r"no answer within 0\.5 s"):
        judge(server, tmp_path, timeout=0.5).check()
    assert len(server.requests) == 1


def test_it_is_asked_for_again_like_one_that_does_not_come(server: Server, tmp_path: Path):
    server.script = ["trickle"]
    judge(server, tmp_path, timeout=0.5, max_retries=1).check()
    assert len(server.requests) == 2


@pytest.mark.parametrize("step", ["flood", "bomb"])
def test_an_answer_too_long_is_not_kept(step: str, server: Server, tmp_path: Path):
    server.script = [step] * 3
    asked = judge(server, tmp_path, max_retries=2)
    tracemalloc.start()
    try:
        with pytest.raises(ScorerError, match="the answer is longer than 16 MiB"):
            asked.check()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(server.requests) == 1, "asking again would not help"
    assert most < 6 * MOST_BYTES + 2**26


@pytest.mark.parametrize(
    "kind",
    ["application/json; charset=utf-7", "text/html; charset=punycode", "x; charset=zlib", ""],
)
def test_what_a_server_says_of_its_encoding_does_not_count(
    kind: str, server: Server, tmp_path: Path
):
    server.content_type = kind
    judge(server, tmp_path).check()


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000,
        '{"a":' * 50_000,
        '{"a": "' * 50_000,
        "{" * 200_000 + '"',
        '{"a": 1, "a": 1, "b": [' * 20_000,
        '{"a": ' + "9" * 100_000 + "}" + "{" * 100_000,
        '{"x": "' + "{" * 300_000,
        "<think>" * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_an_answer_is_read_in_time_that_grows_with_its_length(
    text: str, monkeypatch: pytest.MonkeyPatch
):
    """Counted in characters that the parser reads, not in seconds."""
    read = 0
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, given: str, start: int = 0) -> tuple[Any, int]:
        nonlocal read
        try:
            found, end = decode(self, given, start)
        except json.JSONDecodeError as error:
            read += error.pos - start
            raise
        except (ValueError, RecursionError):
            read += len(given) - start
            raise
        read += end - start
        return found, end

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    with pytest.raises(answers.UnreadableAnswerError):
        answers.verdict(text, ["yes", "no"])
    assert read <= (answers.WORK + 2) * len(text) + 1000


def test_a_verdict_among_many_braces_is_found():
    text = "{ " * 200 + '{"label": "yes", "reason": "r"}' + " }" * 200
    assert answers.verdict(text, ["yes", "no"]).label == "yes"


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": "many", "completion_tokens": None},
        [[[]]],
    ],
)
def test_counts_that_cannot_be_are_none(usage: Any):
    found = answers.usage(json.dumps({"usage": usage}))
    assert (found.unmetered, found.prompt_tokens) == (1, 0)
    assert found.cost(1.0, 1.0) == 0.0


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"choices": ' + "[" * 100_000, '{"usage": ' * 9_999]
)
def test_bodies_nested_without_end_are_unreadable(body: str):
    assert answers.usage(body).unmetered == 1
    with pytest.raises(answers.UnreadableAnswerError):
        answers.content(body)
