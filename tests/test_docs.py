"""The documents say what the code does."""

from __future__ import annotations

import math
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel

import heretic
from heretic.config import Settings
from heretic.prompts import Prompt
from heretic.scorers import Outputs, load_scorers
from heretic.scorers.judge import ClassifierJudgeOptions, LLMJudgeOptions
from tests.support.data_sets import only

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def code(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_document_the_program_names_exists():
    sources = [
        path.read_text(encoding="utf-8") for path in Path(heretic.__file__).parent.rglob("*.py")
    ]
    named = set(re.findall(r"(?<![/\w.])docs/[\w-]+\.md", "\n".join(sources)))
    assert {"docs/models.md", "docs/scorers.md"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_citation_and_changes_are_of_this_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == heretic.__version__
    assert citation["license"] == project["license"]
    assert f"\n## Unreleased: {heretic.__version__}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_extra_is_told_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    table = (DOCS / "installing.md").read_text("utf-8")
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", table)) == extras
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    told = readme.partition("Optional extras: ")[2].partition("## ")[0]
    assert set(re.findall(r"\[(\w+)\](?!\()", told)) == extras - {"docs"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_and_tables_stand_apart(page: Path):
    """Without an empty line before them, the site shows them as a part of the paragraph."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = ["", *text.splitlines()]
    item, row = re.compile(r"(?:\d+\.|[-*]) "), re.compile(r"\|")
    for before, line in pairwise(lines):
        for start, inside in ((item, re.compile(r"\s*(?:\d+\.|[-*]) |\s{2,}")), (row, row)):
            assert not start.match(line) or not before.strip() or inside.match(before), line


def test_scorers_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (program,), (table, items) = code("scorers.md", "python"), code("scorers.md", "toml")
    assert len([line for line in program.splitlines() if line.strip()]) <= 30
    (tmp_path / "length.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scorers = load_scorers(Settings(model="m", **tomllib.loads(table)))
    prompts = [Prompt("a"), Prompt("b")]
    replies = ["short", "long " * 20]
    logits = torch.zeros(2, 5)
    outputs = Outputs(
        prompts={"good": prompts, "bad": prompts},
        logits={"good": logits},
        responses={"good": replies, "bad": replies},
    )
    scores = [scorer.score(outputs, outputs) for scorer in scorers]
    assert all(math.isfinite(score.value) for score in scores)
    assert [score.name for score in scores] == ["refusals", "kl_divergence", "length"]
    assert (scores[2].value, scores[2].display, scores[2].optimization) == (0.5, "1/2", "none")
    (capability,) = load_scorers(Settings(model="m", **tomllib.loads(items)))
    assert [only(where).dataset for where in capability.sets().values()] == ["Rowan/hellaswag"]


def test_examples_of_judges_are_valid_settings():
    examples = code("judges.md", "toml")
    assert len(examples) == 5
    for example in examples:
        scorers = load_scorers(Settings(model="m", **tomllib.loads(example)))
        assert any("Judge" in type(scorer).__name__ for scorer in scorers)


@pytest.mark.parametrize("options", [LLMJudgeOptions, ClassifierJudgeOptions])
def test_every_option_of_a_judge_is_on_its_page(options: type[BaseModel]):
    page = (DOCS / "judges.md").read_text(encoding="utf-8")
    assert [name for name in options.model_fields if f"`{name}`" not in page] == []


def shown_by(row: str) -> list[str]:
    """What the last cell of a row of a table names in backticks."""
    return re.findall(r"`([^`]+)`", row.rstrip().rstrip("|").rpartition(" | ")[2])


def exists(test: str) -> bool:
    """Whether a test (`folder/file.py::Class::test`, below `tests/`) is there."""
    file, *names = test.split("::")
    path = ROOT / "tests" / file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return path.exists() and all(re.search(rf"\b(def|class) {name}\b", text) for name in names)


def test_every_case_of_reliability_names_tests_that_exist():
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| ") and "---" not in row]
    cases = [row for row in rows if not row.startswith("| case |")]
    assert [row for row in cases if not shown_by(row)] == []
    assert [test for row in cases for test in shown_by(row) if not exists(test)] == []
    assert not exists("test_docs.py::test_that_nobody_wrote")
