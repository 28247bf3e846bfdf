"""Names and texts that others chose reach terminal, log and card without commands in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.support import tiny

from heretic.main import main
from heretic.runs.folder import RunFolder
from heretic.system.display import safe

ESCAPE, TITLE, BIDI = "\x1b[31m", "\x1b]0;x\x07", "\u202e\u2066"

CONFIG = """
n_trials = 1
search = "tpe"
seed = 7
force = true
dtypes = ["float32"]
max_response_length = 3
response_prefix = {prefix}
system_prompt = {hostile}
refusal_markers = ["`", "%"]
scorers = [
    {{ plugin = "keyword", name = {name} }},
    {{ plugin = "kl_divergence" }},
]
[good_prompts]
dataset = "good.txt"
split = "train[:8]"
prefix = {hostile}
[bad_prompts]
dataset = "bad.txt"
split = "train[:8]"
[good_evaluation_prompts]
dataset = "good.txt"
split = "train[8:]"
[bad_evaluation_prompts]
dataset = {file}
split = "train[8:]"
"""


def is_clean(text: str) -> bool:
    """Whether nothing in it would be replaced; carriage returns are those of progress bars."""
    return safe(text.replace("\r", "")) == text.replace("\r", "")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text("\n".join(tiny.GOOD_PROMPTS))
    for name in ("bad.txt", f"b{ESCAPE}{BIDI}.txt"):
        (tmp_path / name).write_text("\n".join([*tiny.BAD_PROMPTS[:-1], f"Say {TITLE}{BIDI}!"]))
    tiny.folder(tmp_path / f"mo{ESCAPE}{BIDI}del")
    return tmp_path


def test_of_a_whole_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def quoted(text: str) -> str:
        return json.dumps(text)

    hostile = f"Be {ESCAPE}{TITLE}{BIDI} brief."
    text = CONFIG.format(
        hostile=quoted(hostile),
        prefix=quoted(f"{ESCAPE}{BIDI}"),
        name=quoted(f"ref{ESCAPE}{BIDI}\nusals"),
        file=quoted(f"b{ESCAPE}{BIDI}.txt"),
    )
    (place / "own.toml").write_text(text, encoding="utf-8")
    save = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "merge"]
    model = f"mo{ESCAPE}{BIDI}del"
    command = [model, "--config", "own.toml", *save, "--save-directory", f"ou{ESCAPE}{BIDI}t"]
    assert main(command) == 0
    (run,) = (place / "checkpoints").iterdir()
    assert main(["runs"]) == 0
    assert main(["runs", "--json"]) == 0
    assert main(["inspect", model]) == 0
    assert main(["export", str(run)]) == 0
    said = capfd.readouterr()
    assert is_clean(said.out)
    assert is_clean(said.err)
    assert is_clean(RunFolder(run).log_path.read_text(encoding="utf-8"))
    (card,) = place.glob("ou*/README.md")
    assert is_clean(card.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [["chat"], ["export"], ["benchmark"], ["inspect"], []])
def test_of_errors(command: list[str], place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place / f"mo{ESCAPE}{BIDI}del")
    assert main([*command, f"./no{ESCAPE}{BIDI}thing"]) == 2
    assert main([f"--no{ESCAPE}{BIDI}thing"]) == 2
    said = capfd.readouterr()
    assert is_clean(said.out + said.err)
    assert "thing" in said.err
