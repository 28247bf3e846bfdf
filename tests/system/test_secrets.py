"""Secrets are found in every form, and nothing else is changed."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heretic.system.display import safe
from heretic.system.secrets import (
    MASK,
    Secret,
    masked,
    masked_address,
    masked_options,
    register_options,
)

CANARY = "canary/7f+3a=9c\"'\\&<é>x"
"""Characters that every way of writing treats in a way of its own."""

FORMS = {
    "raw": CANARY,
    "in a sentence": f"key={CANARY}, wrong",
    "repr": repr(CANARY),
    "repr in a repr": repr(repr({"Authorization": f"Bearer {CANARY}"})),
    "JSON in JSON in a repr": repr(json.dumps(json.dumps({"error": CANARY}))),
    "URL in a URL": quote(quote(CANARY, safe=""), safe=""),
    "HTML by number": "".join(f"&#{ord(c)};" if not c.isalnum() else c for c in CANARY),
    "HTML in HTML": html.escape(html.escape(CANARY)),
    "ascii": ascii(CANARY),
    "bytes": repr(CANARY.encode()),
    "JSON": json.dumps({"error": CANARY}),
    "JSON with letters": json.dumps({"error": CANARY}, ensure_ascii=False),
    "URL": quote(CANARY),
    "URL, all": quote(CANARY, safe=""),
    "URL, lower case": quote(CANARY, safe="").replace("%2F", "%2f").replace("%C3", "%c3"),
    "form": quote_plus(CANARY),
    "base64": base64.b64encode(CANARY.encode()).decode(),
    "basic": base64.b64encode(f"user:{CANARY}".encode()).decode(),
    "basic, other user": base64.b64encode(f"someone:{CANARY}".encode()).decode(),
    "base64 in the middle": base64.b64encode(f"ab{CANARY}cd".encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(f"x{CANARY}".encode()).decode(),
    "HTML": html.escape(CANARY),
    "hex": CANARY.encode().hex(),
    "upper case": CANARY.upper(),
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of another test is known."""
    import heretic.system.secrets as module

    monkeypatch.setattr(module, "_known", set())
    module._pattern.cache_clear()
    module._stored_hub_token.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_masked(form: str):
    text = FORMS[form]
    assert masked(text) == text  # not known yet
    Secret(CANARY)
    found = masked(text)
    assert MASK in found
    for part in ("canary", "CANARY", "7f+3a", "7f%2B3a", "Y2FuYXJ5", "63616e617279"):
        assert part not in found
    assert MASK in safe(text)


@given(st.text(st.characters(codec="utf-8"), min_size=8), st.text(max_size=9), st.integers(0, 2))
def test_any_secret_in_any_base64_is_masked(secret: str, before: str, after: int):
    if len(secret.strip()) < 8 or secret != secret.strip():
        return
    Secret(secret)
    text = base64.b64encode(before.encode() + secret.encode() + b"\n" * after).decode()
    assert MASK in masked(text)
    assert secret not in masked(secret)


def test_it_shows_itself_as_nothing():
    secret = Secret(CANARY)
    shown = (str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{[secret]}")
    assert all(CANARY not in text and MASK in text for text in shown)
    assert secret.reveal() == CANARY


def test_short_words_are_masked_only_where_they_are_a_key():
    secret = Secret("none")
    assert masked("there are none") == "there are none"
    assert secret.mask("wrong key: none") == f"wrong key: {MASK}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://host/v1?limit=5&page=2#part",
        "me@example.org writes to you@example.org",
        "a = b; key = value; token: 5 tokens",
        "https://host/path: 3 of 4 (75%)",
        "the key=board",
    ],
)
def test_other_text_stays(text: str):
    Secret(CANARY)
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pass@host/v1 failed", "http://***@host/v1 failed"),
        ("via 'http://pass@proxy:8080'", "via 'http://***@proxy:8080'"),
        ("https://h/v1?api_key=abc&x=1", "https://h/v1?api_key=***&x=1"),
        ("https://h/v1?x=1&access_token=abc", "https://h/v1?x=1&access_token=***"),
        ("https://h/v1?X-Amz-Signature=abc", "https://h/v1?X-Amz-Signature=***"),
    ],
)
def test_addresses_in_any_text(text: str, expected: str):
    assert masked(text) == expected


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_hubs_token_is_known(variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, CANARY)
    assert masked(f"Bearer {CANARY}") == f"Bearer {MASK}"


def test_so_is_the_one_that_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "token").write_text(f"{CANARY}\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert masked(CANARY) == MASK


class TestOptions:
    """What is written down of a scorer's options."""

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("https://host/v1", "https://host/v1"),
            ("https://host:8000/v1/", "https://host:8000/v1/"),
            ("https://host/v1?token=abc", "https://host/v1?token=***"),
            (
                "https://host/v1?api-version=2026-01-01&code=abc",
                "https://host/v1?api-version=2026-01-01&code=***",
            ),
            ("https://host/v1?abc", "https://host/v1?***"),
            ("https://user:abc@host/v1", "https://***@host/v1"),
            ("https://host/v1#abc", "https://host/v1"),
            ("https://host/sk-abcdefgh1/v1", "https://host/***/v1"),
            ("https://host/v1;key=sk-abcdefgh1", "https://host/v1;key=***"),
            ("https://host/hf-inference/v1", "https://host/hf-inference/v1"),
            ("https://[abc", MASK),
        ],
    )
    def test_addresses(self, address: str, expected: str):
        assert masked_address(address) == expected

    @pytest.mark.parametrize(
        "body",
        [
            {"api_key": CANARY},
            {"apiKey": CANARY},
            {"X-Api-Key": CANARY},
            {"headers": {"Authorization": CANARY}},
            {"auth": [{"accessToken": CANARY}]},
            {"password": [CANARY]},
            {"user": f"sk-{CANARY}"},
            {"note": f"Bearer {CANARY}"},
            {"client-secret": CANARY},
        ],
    )
    def test_fields_of_requests(self, body: dict[str, object]):
        kept = masked_options({"extra_body": body})
        assert "canary" not in json.dumps(kept)
        assert MASK in json.dumps(kept)
        register_options({"extra_body": body})
        assert "canary" not in masked(f"the server says: {body}")

    def test_what_is_no_secret_stays(self):
        options = {
            "endpoint": "http://localhost:8000/v1",
            "model": "judge",
            "api_key_env": "OPENAI_API_KEY",
            "max_tokens": 512,
            "max_tokens_field": "max_completion_tokens",
            "labels": {"yes": "It does.", "no": "It does not."},
            "extra_body": {"reasoning_effort": "low", "top_k": 1, "max_tokens": 3},
            "eos_token": "</s>",
            "markers": ["key", "token"],
        }
        assert masked_options(options) == options

    def test_it_depends_on_nothing_else(self):
        """It identifies a run, so it must not change with the secrets that a process has seen."""
        options = {"criterion": f"Whether the reply holds {CANARY}."}
        Secret(CANARY)
        assert masked_options(options) == options
