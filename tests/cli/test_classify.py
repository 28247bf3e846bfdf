"""`heretic classify`: lines in, the same lines with verdicts out, in order."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heretic.main import main

REFUSED = {"prompt": "How do I boil an egg?", "response": "I can\u2019t help with that."}
ANSWERED = {"id": 7, "response": "Put it in boiling water. \u6c34 \U0001f95a\u2028Wait."}

PLUGIN = '''
from heretic.scorers import Needs, Scorer

class Length(Scorer):
    """Characters of a reply."""
    needs = Needs(responses=frozenset({"good"}))
    def measure(self, outputs, baseline):
        return float(len(outputs.responses["good"][0])), "long"

class Logits(Length):
    """Not to be had from text."""
    needs = Needs(logits=frozenset({"good"}))
'''


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.jsonl"


def classified(
    capfdbinary: pytest.CaptureFixture[bytes], *arguments: object
) -> tuple[list[dict[str, Any]], str]:
    assert main(["classify", *map(str, arguments)]) == 0
    out, err = capfdbinary.readouterr()
    return [json.loads(line) for line in out.split(b"\n") if line], err.decode()


def test_a_reply_may_stand_in_the_field_reply(
    path: Path, capfdbinary: pytest.CaptureFixture[bytes]
):
    path.write_bytes(lines({"reply": REFUSED["response"]}, {"reply": "", **ANSWERED}))
    rows, _ = classified(capfdbinary, path)
    assert [row["label"] for row in rows] == ["refusal", "compliance"]
    assert rows[0]["reply"] == REFUSED["response"]
    rows, _ = classified(capfdbinary, path, "--scorer", "keyword")
    assert [row["value"] for row in rows] == [1.0, 0.0]


def test_rows_come_back_in_order_with_label_and_span(
    path: Path, capfdbinary: pytest.CaptureFixture[bytes]
):
    path.write_bytes(lines(ANSWERED, REFUSED, ANSWERED, {"response": ""}))
    rows, err = classified(capfdbinary, path)
    assert [row["label"] for row in rows] == ["compliance", "refusal", "compliance", "degenerate"]
    assert rows[0] | ANSWERED == rows[0]
    assert list(rows[1]) == ["prompt", "response", "label", "span", "disclaimer"]
    assert rows[1]["span"] == {"start": 0, "end": 23, "text": REFUSED["response"]}
    assert rows[3]["span"] is None
    assert err.splitlines()[0] == "4 replies"
    assert "compliance  2   50.0%  (15.0% to 85.0%)" in err


def test_fields_of_the_input_are_never_lost(path: Path, capfdbinary: pytest.CaptureFixture[bytes]):
    path.write_bytes(lines(REFUSED | {"label": "mine", "span": 3}))
    (row,), _ = classified(capfdbinary, path)
    assert (row["input_label"], row["input_span"], row["label"]) == ("mine", 3, "refusal")


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]):
    data = b"\xef\xbb\xbf" + lines(REFUSED).replace(b"\n", b"\r\n\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    rows, _ = classified(capfdbinary, "-")
    assert [row["label"] for row in rows] == ["refusal"]


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_file(data: bytes, path: Path, capfdbinary: pytest.CaptureFixture[bytes]):
    path.write_bytes(data)
    assert classified(capfdbinary, path) == ([], "No replies.\n")


def test_half_a_surrogate_pair_survives(path: Path, capfdbinary: pytest.CaptureFixture[bytes]):
    path.write_bytes(b'{"response": "Fine. \\ud83d"}\n')
    (row,), _ = classified(capfdbinary, path)
    assert row["response"] == "Fine. \ud83d"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"prompt": "a"}', "has no text in the field response"),
        (b'{"response": null}', "has no text in the field response"),
        (b'{"response": "a", "prompt": 3}', "has a prompt that is not text"),
        (b'{"response": "\xff"}', "is not UTF-8"),
    ],
)
def test_malformed_lines_are_named_before_anything_is_written(
    line: bytes, said: str, path: Path, capfdbinary: pytest.CaptureFixture[bytes]
):
    path.write_bytes(lines(REFUSED) + b"\n" + line + b"\n" + lines(REFUSED))
    assert main(["classify", str(path)]) == 2
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert f"replies.jsonl, line 3, {said}" in err.decode()


def test_a_file_that_is_not_there(capfdbinary: pytest.CaptureFixture[bytes]):
    assert main(["classify", "nowhere.jsonl"]) == 2
    assert b"nowhere.jsonl cannot be read" in capfdbinary.readouterr().err


def test_other_scorers(path: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]):
    path.write_bytes(lines(REFUSED, ANSWERED))
    rows, err = classified(capfdbinary, path, "--scorer", "keyword")
    assert [row["value"] for row in rows] == [1.0, 0.0]
    assert "value 1  1   50.0%" in err
    plugin = tmp_path / "length.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    rows, err = classified(capfdbinary, path, "--scorer", f"{plugin}:Length")
    assert [row["value"] for row in rows] == [23.0, float(len(str(ANSWERED["response"])))]
    assert "mean value" in err
    for wrong, said in ((f"{plugin}:Logits", b"cannot judge replies alone"), ("hm", b"no scorer")):
        assert main(["classify", str(path), "--scorer", wrong]) == 2
        assert said in capfdbinary.readouterr().err


def test_scorers_of_the_configuration_come_with_their_options(
    path: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
):
    path.write_bytes(lines(REFUSED, ANSWERED, {"response": "I can't, but here it is: " + "x " * 9}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(
        '[[scorers]]\nplugin = "refusal"\nname = "mine"\n[scorer.mine]\npartial_weight = 0.25\n'
    )
    rows, _ = classified(capfdbinary, path, "--scorer", "mine")
    assert [row["value"] for row in rows][:2] == [1.0, 0.0]
    (tmp_path / "config.toml").write_text(
        '[[scorers]]\nplugin = "refusal"\nname = "mine"\n[scorer.mine]\npartial_weight = 7\n'
    )
    assert main(["classify", str(path), "--scorer", "mine"]) == 2
    assert b"partial_weight" in capfdbinary.readouterr().err


def test_a_reader_may_leave(path: Path):
    path.write_bytes(lines(*[REFUSED] * 4000))
    command = [sys.executable, "-m", "heretic", "classify", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"refusal" in process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=300) == 0
    assert b"Traceback" not in err
    assert b"4000 replies" in err
