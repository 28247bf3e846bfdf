"""Cheap checks first: model, destination, plugins, judge, tasks; then prompts; then weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.support import tiny

from heretic import prompts as prompt_sets
from heretic.main import main
from heretic.model import loading

SPLITS = {"good": "train[:8]", "bad": "train[:8]"}
SETTINGS = [
    "--dtypes=float32",
    "--force",
    "--max-response-length=4",
    "--n-trials=1",
    "--n-startup-trials=1",
    "--search=tpe",
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prompts(kinds: str = "good bad") -> list[str]:
    """Options that name prompt files; the files are not made."""
    return [
        f"--{kind}-{what}prompts.dataset={kind}.txt"
        for kind in kinds.split()
        for what in ("", "evaluation-")
    ]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    return " ".join(capsys.readouterr().err.split())


def lose_a_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(max(tensors))
    save_file(tensors, file, metadata={"format": "pt"})


def test_whatever_is_wrong_is_told_in_order_of_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Everything is wrong at first; what has been told is mended, and the next thing is told."""
    Path("edited").mkdir()
    Path("edited/notes.txt").write_text("mine")
    Path("config.toml").write_text("")
    Path("judge.toml").write_text(
        "[[scorers]]\nplugin = 'mine.py:Mine'\nname = 'mine'\n"
        "[[scorers]]\nplugin = 'heretic.scorers.judge:LLMJudge'\nname = 'judge'\n"
        "[scorer.judge]\nendpoint = 'http://127.0.0.1:9/v1'\nmodel = 'm'\n"
    )
    benchmark = ["--model-action=benchmark", "--benchmarks=no_such_task"]
    saving = ["--save-directory=edited", "--model-action=save"]
    arguments = ["model", *SETTINGS, *prompts(), "--config=judge.toml"]

    assert "model" in said([*arguments, *saving], capsys)
    tiny.folder(Path("model"))
    lose_a_weight(Path("model"))
    assert "edited" in said([*arguments, *saving], capsys)
    Path("edited/notes.txt").unlink()
    Path("edited").rmdir()
    assert "mine.py does not exist" in said([*arguments, *saving], capsys)
    Path("mine.py").write_text("from heretic.scorers.keyword import KeywordRefusals as Mine\n")
    assert "127.0.0.1:9" in said([*arguments, *benchmark], capsys)
    arguments.remove("--config=judge.toml")
    assert "no_such_task" in said([*arguments, *benchmark], capsys)
    assert "Prompt file good.txt does not exist" in said([*arguments, *saving], capsys)
    tiny.prompt_files(Path())
    assert "model" in said([*arguments, *saving], capsys)


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "run": lambda model: [model],
    "evaluate": lambda model: ["evaluate", "other", "--against", model],
    "evaluate the other": lambda model: ["evaluate", model, "--against", "other"],
    "apply": lambda model: ["apply", model, "plan.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model", ["./mistyped", "mistyped", "org/mistyped", "somewhere/a/b"])
def test_a_mistyped_model_is_told_before_prompts_are_read(
    command: str, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    tiny.folder(Path("other"))
    kernel = {"max_weight": 1, "max_weight_position": 1, "min_weight": 0, "min_weight_distance": 1}
    plan: dict[str, Any] = {"direction_scope": "per layer", "direction_index": None}
    plan |= {"kernels": {"attn.o_proj": kernel}, "row_normalization": "none"}
    Path("plan.json").write_text(json.dumps(plan))
    forbid(monkeypatch, prompt_sets, "load")
    message = said([*COMMANDS[command](model), *SETTINGS, *prompts()], capsys)
    assert Path(model).name in message
    assert "rompt" not in message


def forbid(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} comes too early")

    monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize("what", ["config.json", "chat_template.jinja", "template's name", "dtype"])
def test_models_that_cannot_be_used_are_told_before_prompts_are_read(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    tiny.folder(Path("model"))
    more = []
    if what == "config.json":
        Path("model/config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    elif what == "chat_template.jinja":
        Path("model/chat_template.jinja").write_text("{% nonsense %}")
    elif what == "dtype":
        more = ["--dtypes=float33"]
    else:
        more = ["--chat-template=rag"]
    forbid(monkeypatch, prompt_sets, "load")
    forbid(monkeypatch, loading, "_load_weights")
    assert "model" in said(["model", *SETTINGS, *more, *prompts()], capsys)


@pytest.mark.parametrize("named", ["file", "file/below"])
def test_a_place_without_run_folders_is_told_before_prompts_are_read(
    named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    tiny.folder(Path("model"))
    Path("file").touch()
    forbid(monkeypatch, prompt_sets, "load")
    arguments = ["model", *SETTINGS, *prompts(), f"--study-checkpoint-dir={named}"]
    assert f"Cannot write {named}: Not a directory." in said(arguments, capsys)


def test_two_sets_of_the_same_prompts_are_told_before_weights_are_read(
    capsys: pytest.CaptureFixture[str],
):
    tiny.folder(Path("model"))
    lose_a_weight(Path("model"))
    tiny.prompt_files(Path())
    Path("bad.txt").write_text(Path("good.txt").read_text())
    assert "good and the bad prompts are the same" in said(["model", *SETTINGS, *prompts()], capsys)


class TestEvaluation:
    """`heretic evaluate` reads evaluation prompts alone."""

    @pytest.fixture
    def options(self) -> list[str]:
        tiny.prompt_files(Path())
        tiny.folder(Path("model"))
        directions = [f"--{kind}-prompts.dataset=nowhere.txt" for kind in ("good", "bad")]
        evaluation = [f"--{kind}-evaluation-prompts.dataset={kind}.txt" for kind in ("good", "bad")]
        return ["evaluate", "edited", "--against", "model", *SETTINGS, *directions, *evaluation]

    def test_the_prefix_is_found_on_the_evaluation_prompts(
        self, options: list[str], capsys: pytest.CaptureFixture[str]
    ):
        tiny.folder(Path("edited"), seed=1)
        assert main(options) == 0
        assert "Looking for a response prefix" in capsys.readouterr().out

    def test_the_prefix_that_an_export_recorded_is_taken(
        self, options: list[str], capsys: pytest.CaptureFixture[str]
    ):
        tiny.folder(Path("edited"), seed=1)
        found = {"response_prefix": "Well, ", "date": "2024-05-06T00:00:00"}
        record = {"schema_version": 2, "found": found}
        Path("edited/reproduce.json").write_text(json.dumps(record))
        assert main(options) == 0
        shown = capsys.readouterr().out
        assert "Response prefix, as edited records it: 'Well, '" in shown
        assert "Looking for a response prefix" not in shown

    @pytest.mark.parametrize("record", ["{", "[]", '{"found": 1}', '{"schema_version": 2}', "null"])
    def test_a_file_of_that_name_that_is_not_ours_changes_nothing(
        self, record: str, options: list[str], capsys: pytest.CaptureFixture[str]
    ):
        tiny.folder(Path("edited"), seed=1)
        Path("edited/reproduce.json").write_text(record)
        assert main(options) == 0
        assert "Looking for a response prefix" in capsys.readouterr().out

    def test_other_templates_of_the_judged_model_are_said(
        self, options: list[str], capsys: pytest.CaptureFixture[str]
    ):
        tiny.folder(Path("edited"), seed=1, chat_template="!" + tiny.CHAT_TEMPLATE)
        assert main(options) == 0
        assert "The chat templates of the two models differ" in capsys.readouterr().out
