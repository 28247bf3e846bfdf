"""A judge's key, the query of its address and the fields of its requests are in no text."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.judge_server import MODEL, Server, serve

from heretic.config import Settings
from heretic.errors import ScorerError, SettingsError
from heretic.judges import transport
from heretic.judges.client import EndpointJudge
from heretic.judges.options import JudgeOptions
from heretic.judges.records import Item
from heretic.runs.log import logging_to

KEY = "canary/key+7f3a9c=\"'\\&<x>"
QUERY = "canary-query-5e1b"
BODY = "canary-body-77aa"
ITEMS = [Item("Hello", "No.")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "canary-organization")
    with serve() as running:
        yield running


def options(server: Server, place: Path, **values: Any) -> JudgeOptions:
    given = {
        "endpoint": f"{server.url}?token={QUERY}&api-version=2",
        "model": MODEL,
        "api_key_env": "JUDGE_KEY",
        "extra_body": {"api_key": BODY},
        "cache_folder": place / "cache",
        "max_retries": 0,
    }
    return JudgeOptions(**{**given, **values})


def written(place: Path) -> str:
    """All that lies in a folder, as text."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in files)


def told(work: Callable[[], object], place: Path) -> str:
    """What an error shows: its text, its traceback, and the log of a run that it ends."""
    with pytest.raises(ScorerError) as caught, logging_to(place / "run.log"):
        work()
    trace = "".join(traceback.format_exception(caught.value))
    return f"{caught.value}\n{trace}\n{written(place)}"


def test_a_request_carries_all_of_it(server: Server, tmp_path: Path):
    EndpointJudge(options(server, tmp_path)).verdicts(ITEMS)
    assert server.keys == {f"Bearer {KEY}"}
    assert server.paths == [f"/v1/chat/completions?token={QUERY}&api-version=2"]
    assert server.requests[0]["api_key"] == BODY


@pytest.mark.parametrize("step", ["echo", 401, 500, "garbage", "drop"])
def test_no_failure_shows_any_of_it(step: int | str, server: Server, tmp_path: Path):
    server.script = [step] * 9
    text = told(lambda: EndpointJudge(options(server, tmp_path)).verdicts(ITEMS), tmp_path)
    assert "canary" not in text
    assert "Y2FuYXJ5" not in text  # base64
    assert "63616e617279" not in text  # hexadecimal
    assert "?token=***&api-version=2" in text


def test_no_cause_is_chained_to_it(server: Server, tmp_path: Path):
    """Programs that log causes by themselves see none of the library's."""
    server.script = ["echo"]
    with pytest.raises(ScorerError) as caught:
        EndpointJudge(options(server, tmp_path)).check()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_verdict_that_repeats_it_is_kept_without(server: Server, tmp_path: Path):
    server.judge = lambda body: f'{{"reason": "the key is {KEY[:16]}", "label": "refusal"}}'
    whole = KEY.replace("\\", "\\\\").replace('"', '\\"')
    server.script = [f'{{"reason": "the key is {whole}", "label": "refusal"}}']
    judge = EndpointJudge(options(server, tmp_path))
    (verdict,) = judge.verdicts(ITEMS)
    assert verdict.reason == "the key is ***"
    assert "canary" not in written(tmp_path)


@pytest.mark.parametrize(
    "key",
    ["two words-canary", "line\nbreak-canary", "\ufeffcanary-mark", "cänary-key", "canary\x00-key"],
)
def test_a_key_that_no_request_can_carry_is_said_and_not_shown(
    key: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if "\0" in key:
        environment = {"JUDGE_KEY": key}
        with pytest.raises(ScorerError, match="no request can carry") as caught:
            options(server, tmp_path).api_key(environment)
        assert "canary" not in str(caught.value)
        return
    monkeypatch.setenv("JUDGE_KEY", key)
    text = told(lambda: EndpointJudge(options(server, tmp_path)).verdicts(ITEMS), tmp_path)
    assert "JUDGE_KEY holds a space, a line break" in text
    assert key not in text
    assert "nary-" not in text
    assert server.requests == []


@pytest.mark.parametrize("name", ["sk_live_canary", "hf_canaryabc", "canary1a2b3c4d", "c" * 50])
def test_a_key_in_place_of_the_variables_name_is_not_shown(
    name: str, server: Server, tmp_path: Path
):
    judge = EndpointJudge(options(server, tmp_path, api_key_env=name))
    text = told(judge.check, tmp_path)
    assert name not in text
    assert "it must be a name, never the key itself" in text


def test_a_password_in_the_address_is_refused_and_not_shown(server: Server, tmp_path: Path):
    address = server.url.replace("http://", "http://user:canary-pass@")
    with pytest.raises(ValueError, match="must not contain a user") as caught:
        options(server, tmp_path, endpoint=address)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "address",
    [
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://ho st/v1",
        "http://h/v1#part",
        "http://a\x1b/v1",
    ],
)
def test_addresses_that_cannot_be_used_are_refused(address: str, server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match=r"(?i)endpoint"):
        options(server, tmp_path, endpoint=address)


def test_what_the_library_takes_from_the_environment_is_not_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[dict[str, str]] = []
    original = transport.bounded_client

    def watched(seconds: float) -> Any:
        client = original(seconds)
        client.event_hooks = {"request": [watch]}
        return client

    async def watch(request: Any) -> None:
        seen.append(dict(request.headers))

    monkeypatch.setattr(transport, "bounded_client", watched)
    EndpointJudge(options(server, tmp_path)).check()
    assert len(seen) == 1
    assert "canary-organization" not in str(seen)


def test_the_libraries_own_log_is_masked_too(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, logger="heretic"):
        server.takes_schema = False
        EndpointJudge(options(server, tmp_path)).check()
    assert "does not take a JSON schema" in caplog.text
    assert "canary" not in caplog.text


def test_it_is_in_no_repr(server: Server, tmp_path: Path):
    given = options(server, tmp_path)
    table = given.model_dump(mode="json")
    settings = Settings.restore(
        {"scorers": [{"plugin": "llm_judge", "name": "judged"}], "scorer": {"judged": table}}
    )
    shown = f"{given!r} {given} {settings!r} {settings}"
    assert "canary" not in shown
    assert MODEL in shown
    assert settings.to_dict()["scorer"]["judged"]["extra_body"] == {"api_key": BODY}
    assert "canary" not in str(settings.recorded()) + str(settings.fingerprint())


def test_an_error_of_the_settings_shows_no_secret_in_its_causes():
    table = {"judged": {"extra_body": {"api_key": BODY}}}
    with pytest.raises(SettingsError) as caught:
        Settings.restore({"scorer": table, "n_trials": 0})
    assert "canary" not in "".join(traceback.format_exception(caught.value))
