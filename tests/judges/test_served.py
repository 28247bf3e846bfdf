"""Chats with a server: streamed, cut anywhere, malformed, broken off, refused, elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.chat_server import ChatServer, end, event, reply, serve_chats
from tests.support.judge_server import KEY

from heretic.errors import ModelError
from heretic.judges import transport
from heretic.judges.served import Served, ServedModel, is_address, served

HELLO = [{"role": "user", "content": "Hello!"}]
MIXED = "Grüße, 漢字, 😀\u2028and\x85more."


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serve_chats() as running:
        yield running


def model_at(server: ChatServer, **options: Any) -> ServedModel:
    return ServedModel(Served(endpoint=server.url, **{"max_retries": 0, **options}))


def said(server: ChatServer, **options: Any) -> str:
    return "".join(model_at(server, **options).reply(HELLO))


def failed(server: ChatServer, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        said(server, **options)
    assert server.url in str(caught.value)
    return str(caught.value)


def test_a_reply_comes_in_pieces(server: ChatServer):
    model = model_at(server)
    assert list(model.reply(HELLO)) == ["Hello", " there."]
    assert model.name == "stand-in"
    assert server.requests == [
        {"model": "stand-in", "messages": HELLO, "stream": True, "temperature": 0.0}
    ]
    assert server.paths == ["/v1/models", "/v1/chat/completions"]


def test_pieces_are_shown_before_the_reply_ends():
    with serve_chats(waits=True, answers=[[event("Well")]]) as server:
        assert next(model_at(server).reply(HELLO)) == "Well"


def test_a_reply_that_is_left_ends_the_request():
    with serve_chats(waits=True, answers=[[event("Well")]]) as server:
        stream = model_at(server).reply(HELLO)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert server.gone.wait(20)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_may_be_cut_within_characters_and_events(server: ChatServer, size: int):
    data = reply(*MIXED, " ok")
    server.answers = [[data[start : start + size] for start in range(0, len(data), size)]]
    assert said(server) == f"{MIXED} ok"


def test_half_of_a_pair_waits_for_the_other(server: ChatServer):
    data = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
    server.answers = [[data % rb"a\ud83d" + data % rb"\ude00b" + data % rb"\ud83d!" + end()]]
    assert said(server) == "a😀b\ufffd!"


@pytest.mark.parametrize(
    "body",
    [
        reply("Hi").replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + b": comment\n\nevent: message\nid: 3\nretry: 9\n" + reply("Hi"),
        reply("Hi").replace(b"data: ", b"data:"),
        reply("Hi").replace(b'{"object"', b'\ndata: {"object"').replace(b"data: \n", b""),
        event("Hi") + b'data: {"choices": [], "usage": {}}\n\n' + end(),
        event("Hi") + b"data: [DONE]",
    ],
    ids=["CRLF", "other fields", "no space", "two lines", "counts", "no last line"],
)
def test_forms_of_streams(server: ChatServer, body: bytes):
    server.answers = [[body]]
    assert said(server) == "Hi"


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_server_that_does_not_stream(server: ChatServer, kind: str):
    choice = {"message": {"role": "assistant", "content": MIXED}, "finish_reason": "stop"}
    server.kind, server.answers = kind, [[json.dumps({"choices": [choice]}).encode()]]
    assert said(server) == MIXED


def test_a_stream_that_is_called_something_else(server: ChatServer):
    server.kind = "application/octet-stream"
    assert said(server) == "Hello there."


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_shown_between_tags(server: ChatServer, name: str):
    thoughts = [event("", **{name: "Let me "}), event("", **{name: "see."})]
    server.answers = [[b"".join(thoughts) + reply("Yes", ".")]]
    assert said(server) == "<think>\nLet me see.\n</think>\n\nYes."


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (event("Well") + b"data: {oops\n\n" + end(), "no part of a reply: {oops"),
        (event("Well") + b"data: [1]\n\n" + end(), "no part of a reply: [1]"),
        (event("Well") + b"data: " + b"[" * 9999 + b"\n\n", "no part of a reply: [["),
        (event("Well") + b'data: {"choices": [{"delta": 3}]}\n\n', "no part of a reply"),
        (event("Well") + b'data: {"error": {"message": "out of m\x1b[2J"}}\n\n', "out of m"),
        (event("Well") + b'data: {"error": "out of memory"}\n\n', "an error: out of memory"),
        (event("Well") + b'data: {"object": "error", "message": "oom"}\n\n', "an error: oom"),
        (event("Well"), "broke off before its end"),
        (event("Well") + end("length"), "cut at the most tokens"),
    ],
)
def test_what_is_wrong_in_mid_stream_is_said(server: ChatServer, body: bytes, problem: str):
    server.answers = [[body]]
    stream = model_at(server).reply(HELLO)
    assert next(stream) == "Well"
    with pytest.raises(ModelError) as caught:
        list(stream)
    assert problem in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_connection_that_breaks():
    with serve_chats(breaks=True, answers=[[event("Well")]]) as server:
        assert "the reply broke off" in failed(server)


def test_a_server_that_falls_silent():
    with serve_chats() as server:
        server.answers = [_Silent(server)]
        assert "no further piece of the reply within 0.5 s" in failed(server, timeout=0.5)


class _Silent:
    """Pieces of which the second never comes."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server

    def __iter__(self) -> Iterator[bytes]:
        yield event("Well")
        self.server.closing.wait(60)


def test_a_page_that_is_no_reply(server: ChatServer):
    server.kind, server.answers = "text/html", [[b"<html>Welcome</html>"]]
    assert "no part of a reply: <html>Welcome" in failed(server)


def test_an_answer_without_end_is_not_kept(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "MOST_BYTES", 2**20)
    for kind in ("text/event-stream", "application/json"):
        server.kind, server.answers = kind, [[b"x" * 2**18] * 8]
        assert "longer than 1 MiB" in failed(server)


def test_the_key_comes_from_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-another-server")
    server.key = KEY
    assert said(server, api_key_env="SERVER_KEY") == "Hello there."
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in model_at(server, api_key_env="SERVER_KEY").sent()
    server.keys.clear()
    message = failed(server)
    assert "HTTP 401" in message
    assert "--api-key-env" in message
    assert server.keys == {"Bearer none"}


def test_a_key_that_is_wrong_is_not_repeated(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_KEY", "key-that-is-wrong")
    server.key = KEY
    message = failed(server, api_key_env="SERVER_KEY")
    assert "HTTP 401" in message
    assert "key-that-is-wrong" not in message


def test_a_key_that_is_missing(server: ChatServer):
    with pytest.raises(ModelError, match=r"SERVER_KEY .* is not set\..*--api-key-env"):
        said(server, api_key_env="SERVER_KEY")
    assert server.paths == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_told_and_not_followed(
    server: ChatServer, status: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERVER_KEY", KEY)
    with serve_chats() as other:
        server.status, server.headers = [status], {"Location": f"{other.url}/chat/completions"}
        message = failed(server, api_key_env="SERVER_KEY")
        assert f"names another address, {other.url}" in message
        assert other.paths == []


def test_failures_before_a_reply_are_tried_again(server: ChatServer):
    server.status, server.headers = [503, 429], {"Retry-After-Ms": "1"}
    assert said(server, max_retries=2) == "Hello there."
    assert len(server.requests) == 3


def test_errors_are_text(server: ChatServer):
    server.status = [500]
    message = failed(server)
    assert "HTTP 500: status 500" in message
    assert "\x1b" not in message


def test_a_model_with_one_temperature(server: ChatServer):
    model = model_at(server)
    server.status = [400]
    assert "".join(model.reply(HELLO)) == "Hello there."
    assert "".join(model.reply(HELLO)) == "Hello there."
    assert [body.get("temperature") for body in server.requests] == [0.0, None, None]


def test_one_of_several_models_must_be_named(server: ChatServer):
    server.names = ["a", "b\x1b[2J"]
    message = failed(server)
    assert "it has 2 models: a, b" in message
    assert "--served-model" in message
    assert "\x1b" not in message
    assert said(server, model="a") == "Hello there."
    assert server.requests[-1]["model"] == "a"


@pytest.mark.parametrize("names", [[], None])
def test_a_server_without_a_list_of_models(server: ChatServer, names: list[str] | None):
    server.names = names
    assert "--served-model" in failed(server)
    assert said(server, model="a") == "Hello there."


def test_nobody_listens():
    with serve_chats() as server:
        pass
    message = failed(server)
    assert "no connection" in message
    assert "that the server is running" in message


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://user:secret-of-user@localhost/v1", "name a variable in --api-key-env"),
        ("http://", "must be an http or https address"),
        ("http://localhost:99999/v1", "address"),
        ("http://local host/v1", "without spaces"),
    ],
)
def test_addresses_that_are_none(address: str, problem: str):
    with pytest.raises(ModelError) as caught:
        ServedModel(served(address))
    assert problem in str(caught.value)
    assert "secret-of-user" not in str(caught.value)


def test_what_is_sent_where_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    told = {
        address: ServedModel(served(address, "m\n\x1b", "SERVER_KEY")).sent()
        for address in ("http://127.0.0.1:80/v1", "http://10.0.0.1/v1", "https://10.0.0.1/v1")
    }
    first = told["http://127.0.0.1:80/v1"]
    assert first == "Chats are sent to 127.0.0.1:80 (model m \ufffd), with the key in SERVER_KEY."
    assert [text.endswith(", unencrypted.") for text in told.values()] == [False, True, False]


def test_names_of_models_are_no_addresses():
    assert is_address("HTTP://localhost")
    assert not any(map(is_address, ("org/model", "http", "./http://x", "C:\\x")))
