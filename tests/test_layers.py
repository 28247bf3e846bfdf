"""Imports go one way, what must start fast or run without torch does, and modules stay short."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import heretic

SOURCE = Path(heretic.__file__).parent

ORDER = (
    "errors",
    "refusals",
    "system",
    "records",
    "events",
    "config",
    "runs",
    "tracking",
    "method",
    "quantised",
    "architectures",
    "report",
    "prompts",
    "model",
    "engine",
    "search",
    "cluster",
    "judges",
    "harness",
    "scorers",
    "export",
    "gguf",
    "compare",
    "evaluator",
    "pipeline",
    "batch",
    "doctor",
    "demo",
    "worker",
    "ui",
    "cli",
    "utils",
    "main",
    "__main__",
)
"""The rooms of the package, its folders and loose files, from the bottom up: a module imports its
own room and rooms above it in this list. Imports inside functions count like all others."""

NARROW = {
    "errors": set[str](),
    "refusals": set[str](),
    "system": {"errors"},
    "records": {"errors"},
    "events": {"records"},
    "config": {"errors", "records", "system"},
    "runs": {"errors", "events", "records", "system"},
    "tracking": {"errors", "events", "records", "system"},
    "method": {"records"},
    "quantised": {"errors", "system"},
    "architectures": {"errors", "records", "quantised"},
    "cluster": {"errors", "events", "records", "system"},
    "report": {"config", "errors", "method", "records", "refusals", "runs", "system"},
    "main": {"cli"},
    "__main__": {"main"},
}
"""Rooms that see less than all below them."""

LONGEST_ROOM_CHAIN = 14
LONGEST_MODULE_CHAIN = 22
LONGEST_MODULE = 450
LONGEST_FUNCTION = 65
"""In lines, from `def` to the end."""

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


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("heretic", *(part for part in parts if part != "__init__")))


PATHS = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room(module: str) -> str | None:
    """The room of `heretic.a.b`, or None for the package itself, which holds the version only."""
    return module.split(".")[1] if "." in module else None


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a syntax tree, less what only type checkers read."""
    yield tree
    children: Iterable[ast.AST] = ast.iter_child_nodes(tree)
    for child in tree.orelse if isinstance(tree, ast.If) and is_for_types(tree) else children:
        yield from run_time(child)


def named(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and name of every module of this package that is imported, lazily or not."""
    for node in nodes:
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


def is_own_resource(module: str, name: str) -> bool:
    """A package that is named in one of its own modules: for the files beside it."""
    return f"{module}.".startswith(f"{name}.")


def syntax(module: str) -> ast.AST:
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def is_plugin(importer: str, imported: str) -> bool:
    """The default scorers stand in the settings as text that users could write themselves."""
    return room(importer) == "config" and room(imported) == "scorers"


@cache
def imports() -> dict[str, set[str]]:
    """Which modules each module imports when it runs."""
    graph: dict[str, set[str]] = {}
    for module in PATHS:
        found = named(run_time(syntax(module)))
        names = [name for _, name in found if not is_own_resource(module, name)]
        # `from heretic.a import b` names a module or something in one.
        modules = {name if name in PATHS else name.rpartition(".")[0] for name in names}
        known = modules & set(PATHS) - {module, "heretic"}
        graph[module] = {other for other in known if not is_plugin(module, other)}
    return graph


def between_children(folder: str) -> dict[str, set[str]]:
    """Which files and folders that lie directly in a package import which of the others."""
    depth = folder.count(".") + 2
    graph: dict[str, set[str]] = {}
    for module, others in imports().items():
        if not module.startswith(f"{folder}."):
            continue
        own = ".".join(module.split(".")[:depth])
        inside = {other for other in others if other.startswith(f"{folder}.")}
        found = {".".join(other.split(".")[:depth]) for other in inside}
        graph.setdefault(own, set()).update(found - {own})
    return graph


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest way along the arrows; a circle is an error that names it."""
    known: dict[str, list[str]] = {}

    def longest_from(node: str, above: tuple[str, ...]) -> list[str]:
        assert node not in above, f"a circle: {' -> '.join((*above, node))}"
        if node not in known:
            rest = [longest_from(other, (*above, node)) for other in sorted(graph.get(node, ()))]
            known[node] = [node, *max(rest, key=len, default=[])]
        return known[node]

    return max((longest_from(node, ()) for node in graph), key=len, default=[])


FOLDERS = sorted({name.rpartition(".")[0] for name in PATHS if "." in name})


def test_every_room_has_a_place_in_the_order():
    assert {room(module) for module in PATHS} - {None} == set(ORDER)


@pytest.mark.parametrize("module", PATHS)
def test_imports_go_one_way(module: str):
    own = room(module)
    if own is None:
        allowed: set[str] = set()
    else:
        allowed = NARROW.get(own, set(ORDER[: ORDER.index(own)])) | {own}
    wrong = []
    for line, name in named(ast.walk(syntax(module))):  # for type checking too
        other = room(name) if name.startswith("heretic.") else None
        if other in ORDER and other not in allowed and not is_plugin(module, name):
            wrong.append(f"line {line}: {own} imports {other}")
    assert not wrong


def test_modules_form_no_circle_and_no_long_chain():
    assert len(longest_chain(imports())) <= LONGEST_MODULE_CHAIN


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_folders_in_a_folder_form_no_circle(folder: str):
    longest_chain(between_children(folder))


def test_rooms_form_no_long_chain():
    assert len(longest_chain(between_children("heretic"))) <= LONGEST_ROOM_CHAIN


def annotated(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every annotation of a parameter or an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.lineno, ast.unparse(node.annotation)


BELOW_PIPELINE = [
    module
    for module in PATHS
    if room(module) in ORDER[: ORDER.index("pipeline")]
    # The settings' own room, and the classes that the library interface makes from settings.
    and room(module) != "config"
    and not module.endswith(".library")
]


@pytest.mark.parametrize("module", BELOW_PIPELINE)
def test_below_the_pipeline_nothing_takes_all_settings(module: str):
    wrong = [
        f"line {line}: {text}"
        for line, text in annotated(syntax(module))
        if "Settings" in text.replace("[", " ").replace("]", " ").replace("|", " ").split()
    ]
    assert not wrong


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("module", PATHS)
def test_modules_are_short(module: str):
    lines = PATHS[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_MODULE


@pytest.mark.parametrize("module", PATHS)
def test_functions_are_short(module: str):
    functions = [
        node
        for node in ast.walk(syntax(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [node for node in functions if lines_of(node) > LONGEST_FUNCTION]
    assert [node.name for node in long] == []


def heavy_modules_after(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after running `code`."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return HEAVY & set(json.loads(result.stdout.splitlines()[-1]))


def running(arguments: list[str]) -> str:
    return (
        "from heretic.main import run\n"
        f"try: run({arguments!r})\n"
        "except SystemExit as leaving: assert not leaving.code"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--help-all"], ["run", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    assert heavy_modules_after(running(arguments)) == set()


def test_a_name_that_is_not_there_is_told_before_a_model_library_loads():
    names = ["export", "validate", "benchmark", "report", "gguf", "audit"]
    commands = [[name, "nothing"] for name in names]
    commands += [["look", "nothing", what] for what in ("words", "cosines", "layers")]
    commands += [["look", "nothing", "tokens", "a prompt"]]
    code = f"""
from heretic.cli.main import main
for command in {commands!r}:
    assert main(command) == 2, command
"""
    assert heavy_modules_after(code) & {"accelerate", "optuna", "torch", "transformers"} == set()


def test_version_loads_torch_for_the_device_and_nothing_else():
    assert heavy_modules_after(running(["--version"])) == {"numpy", "torch"}


def test_records_and_settings_load_nothing_heavy():
    code = "import heretic.config.settings, heretic.errors, heretic.events, heretic.records"
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


def test_a_worker_is_driven_without_anything_heavy():
    assert heavy_modules_after("import heretic.worker.client") == set()


def test_a_batch_waits_for_its_jobs_without_anything_heavy():
    assert heavy_modules_after("import heretic.batch.running, heretic.batch.summary") == set()


def test_run_folders_need_no_torch():
    assert "torch" not in heavy_modules_after("import heretic.runs.folder")


def test_the_server_of_the_page_needs_no_torch():
    pytest.importorskip("nicegui")
    found = heavy_modules_after("import heretic.ui.server, heretic.ui.pages.routes")
    assert found & {"accelerate", "datasets", "optuna", "peft", "torch", "transformers"} == set()
