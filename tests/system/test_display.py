"""Texts of any origin command no terminal, reorder no line and forge no entry of a log."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heretic.events import Notice
from heretic.runs.log import logging_to
from heretic.system.display import json_text, safe, safe_line

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ESCAPES = "\x1b[31m \x1b]0;title\x07 \x9b2J \x08\x08 \x00 \x7f"
HIDDEN = "\u200b\u2060\ufeff\u2028\u2029\U000e0041\U000e007f\ufff9"


@pytest.mark.parametrize("character", [*BIDI_CONTROLS, *HIDDEN, *ESCAPES.replace(" ", "")])
def test_each_becomes_visible_or_harmless(character: str):
    shown = safe(f"a{character}b")
    assert character not in shown or character.isprintable()
    assert shown[0] == "a"
    assert shown[-1] == "b"


@given(st.text())
def test_nothing_else_is_left(text: str):
    shown = safe(text)
    left = {unicodedata.category(character) for character in shown if character not in "\n\t"}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(shown) & set(BIDI_CONTROLS + HIDDEN)
    assert safe(shown) == shown


@pytest.mark.parametrize("text", ["über\n\t漢字 👨‍👩‍👧", "می‌خواهم", "क्‍ष", "עברית", "العربية"])
def test_scripts_and_emoji_stay(text: str):
    assert safe(text) == text


def test_one_line_is_one_line():
    assert safe_line("a\r\nb\n\n c\u2028d\te") == "a b c\ufffdd e"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_loses_nothing(value: object):
    text = json_text(value)
    assert json.loads(text) == value
    assert safe(text) == text or "***" in safe(text)


def test_the_log_holds_one_line_for_each_entry(tmp_path: Path):
    forged = "model\n2026-01-01 00:00:00,000 INFO Trial 7: refusals 0"
    with logging_to(tmp_path / "run.log") as log:
        log.emit(Notice(forged))
        log.emit(Notice(ESCAPES + BIDI_CONTROLS))
        logging.getLogger("heretic.x").warning("a\nb %s", "\x1b[2J")
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert not set("".join(lines)) & set(ESCAPES.replace(" ", "") + BIDI_CONTROLS) - set(
        "[]31m02Jtile;"
    )
