"""Imports go one way, and what must start fast or run without torch does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import heretic

SOURCE = Path(heretic.__file__).parent

# Rooms from the bottom up. A module may import its own room and rooms further up in this list,
# nothing below; imports inside functions count like all others.
ROOMS = (
    "errors",
    "identity",
    "records",
    "config",
    "runs",
    "events",
    "judging",
    "prompts",
    "directions",
    "edits",
    "architectures",
    "refusals",
    "model",
    "scorers",
    "evaluator",
    "search",
    "benchmarks",
    "export",
    "report",
    "utils",
    "pipeline",
    "demo",
    "cli",
    "ui",
    "main",
)

# Rooms that may see less than all before them.
NARROW = {
    "errors": set[str](),
    "identity": set[str](),
    "records": {"errors"},
    "config": {"errors", "identity", "records"},
    "runs": {"errors", "identity", "records"},
    "events": {"records"},
    "judging": {"errors"},
    "prompts": {"errors", "identity", "config"},
    "directions": {"records"},
    "edits": {"records"},
    "architectures": {"errors", "records"},
    "refusals": set[str](),
    "report": {"errors", "records", "runs"},
    "main": {"errors", "cli"},
}

# Files beside the one that names their room.
SHARED_ROOMS = {
    "baseline": "evaluator",
    "behaviors": "config",
    "race": "evaluator",
    "single": "pipeline",
    "optional": "errors",
    "statistics": "records",
    "__main__": "main",
    "atomic": "runs",
    "config_docs": "config",
    "config_fields": "config",
    "config_sources": "config",
    "config_tables": "config",
    "presets": "config",
    "trial_log": "runs",
}

HEAVY = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "optuna",
    "pandas",
    "peft",
    "scipy",
    "torch",
    "transformers",
}


def room(module: str) -> str | None:
    """The room of `heretic.a.b`, or None for the package itself, which holds the version only."""
    parts = module.split(".")
    if len(parts) < 2:
        return None
    return SHARED_ROOMS.get(parts[1], parts[1])


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("heretic", *(part for part in parts if part != "__init__")))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every module of this package that a syntax tree imports, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Names given to importlib, as in the table of commands and the default scorers.
            name = node.value.partition(":")[0]
            if name.startswith("heretic.") and name.replace(".", "").isidentifier():
                yield node.lineno, name


def test_every_file_has_a_room():
    rooms = {room(module_name(path)) for path in SOURCE.rglob("*.py")} - {None}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_name)
def test_imports_go_one_way(path: Path):
    own = room(module_name(path))
    if own is None:
        allowed: set[str] = set()
    else:
        allowed = NARROW.get(own, set(ROOMS[: ROOMS.index(own)])) | {own}
    wrong = []
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        other = room(name) if name.split(".")[0] == "heretic" else None
        # The default scorers are named in the settings as text that users could write themselves.
        is_plugin = own == "config" and other == "scorers"
        if other in ROOMS and other not in allowed and not is_plugin:
            wrong.append(f"{path.name}:{line}: {own} imports {other}")
    assert not wrong


def heavy_modules_after(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after running `code`."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return HEAVY & set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = (
        "from heretic.main import run\n"
        f"try: run({arguments!r})\n"
        "except SystemExit as leaving: assert not leaving.code"
    )
    assert heavy_modules_after(code) == set()


def test_records_and_settings_load_nothing_heavy():
    code = "import heretic.config, heretic.errors, heretic.events, heretic.records"
    assert heavy_modules_after(code) == set()


def test_report_needs_no_torch(tmp_path: Path):
    code = f"""
import pathlib, pkgutil, importlib, numpy, heretic.report
for module in pkgutil.iter_modules(heretic.report.__path__, "heretic.report."):
    importlib.import_module(module.name)
from heretic.records import Plan, Score, Trial
from heretic.report.front import draw_front, front_data
from heretic.report.geometry import residual_geometry
plan = Plan.create(direction_scope="per layer", direction_index=None, kernels={{}},
                   row_normalization="none")
scores = (Score("refusals", 0.5, "minimize", "1/2"), Score("kl_divergence", 0.1, "minimize", "0.1"))
draw_front(front_data([Trial(0, plan, scores)]), pathlib.Path({str(tmp_path / "front.png")!r}))
residual_geometry(numpy.ones((3, 2, 4)), numpy.zeros((3, 2, 4)))
"""
    assert heavy_modules_after(code) == {"matplotlib", "numpy"}
    assert (tmp_path / "front.png").is_file()


def test_refusals_are_told_without_torch(tmp_path: Path):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"response": "I cannot help with that."}\n', encoding="utf-8")
    code = f"from heretic.main import run\nassert run(['classify', {str(path)!r}]) == 0"
    # The intervals of the summary are scipy's.
    assert heavy_modules_after(code) <= {"numpy", "scipy"}


def test_run_folders_need_no_torch():
    assert "torch" not in heavy_modules_after("import heretic.runs")
