"""Categories of prompts: where they are read from, and what `keep` takes out of the bad sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from heretic.config import DatasetSpecification
from heretic.errors import PromptError
from heretic.prompts import EvaluationPrompts, Prompt, PromptSets, load
from heretic.prompts.spared import check_kept, remarks_on_spared, spare

ROWS = {"text": ["one", "two", " ", "three", "four"], "kind": ["a", "b  c", "a", None, " "]}
EXPECTED = [("one", "a"), ("two", "b c"), ("three", "none"), ("four", "none")]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(kind: str) -> str:
    """The rows in a file, or a folder, of that kind."""
    path = Path(f"prompts.{kind}")
    lines = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    data = datasets.Dataset.from_dict(ROWS)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "json":
        path.write_text(json.dumps(lines))
    elif kind == "csv":
        body = "".join(f"{line['text']},{line['kind'] or ''}\n" for line in lines)
        path.write_text(f"text,kind\n{body}")
    elif kind == "parquet":
        data.to_parquet(str(path))
    else:
        data.save_to_disk(str(path))
    return str(path)


def found(dataset: str, **options: Any) -> list[tuple[str, str | None]]:
    options = {"category_column": "kind", **options}
    rows = load(DatasetSpecification(dataset=dataset, split="train", **options))
    return [(prompt.user, prompt.category) for prompt in rows]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved"])
def test_every_kind_of_place_has_categories(kind: str):
    """A row without a text takes its category with it; an empty cell is the category none."""
    path = write(kind)
    assert found(path) == EXPECTED
    assert found(path, category_column=None) == [(text, None) for text, _ in EXPECTED]


def test_numbers_are_categories_and_classes_have_their_names():
    Path("p.csv").write_text("text,kind\none,1\ntwo,2\nthree,\n")
    assert found("p.csv") == [("one", "1"), ("two", "2"), ("three", "none")]
    classes = datasets.ClassLabel(names=["maps", "rope"])
    features = datasets.Features({"text": datasets.Value("string"), "kind": classes})
    rows = {"text": ["one", "two", "three"], "kind": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
    assert found("saved") == [("one", "rope"), ("two", "maps"), ("three", "none")]


@pytest.mark.parametrize("column", ["sort", "text"])
def test_a_column_that_holds_no_categories_is_refused(column: str):
    with pytest.raises(PromptError, match=rf"no column '{column}' of categories") as caught:
        found(write("jsonl"), category_column=column)
    assert "its columns are text, kind" in str(caught.value)


def test_text_files_have_no_categories():
    Path("p.txt").write_text("one\ntwo\n")
    with pytest.raises(PromptError, match="Text files have no categories; CSV, JSON lines"):
        found("p.txt")


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
def test_other_values_are_no_categories(value: Any):
    Path("p.jsonl").write_text(json.dumps({"text": "one", "kind": value}))
    with pytest.raises(PromptError, match=f"holds {type(value).__name__}, which is no category"):
        found("p.jsonl")


def test_categories_make_no_other_prompt_of_it():
    assert Prompt("one", None, "a") == Prompt("one", None, "b") == Prompt("one")
    assert len({Prompt("one", None, "a"), Prompt("one", None, "b")}) == 1


# What `keep` does.


def rows(*texts: str) -> list[Prompt]:
    """Prompts whose category is the first word."""
    return [Prompt(text, None, text.split()[0]) for text in texts]


def sets(**changes: Any) -> PromptSets:
    evaluation = EvaluationPrompts([Prompt("g")], rows("maps 3", "rope 3", "maps 4", "ink 3"))
    held_out = EvaluationPrompts([Prompt("h")], rows("rope 5", "ink 5"))
    values = {
        "good": [Prompt("e")],
        "bad": rows("maps 1", "rope 1", "ink 1", "rope 2"),
        "evaluation": evaluation,
        "held_out": held_out,
        "protected": [Prompt("p")],
        **changes,
    }
    return PromptSets(**values)


def users(prompts: Any) -> list[str]:
    return [prompt.user for prompt in prompts]


def test_without_keep_nothing_changes():
    given = sets()
    assert spare(given, ()) is given
    assert remarks_on_spared(given, ()) == []


def test_a_spared_category_leaves_every_bad_set():
    given = sets()
    left = spare(given, ["ROPE "])
    assert left.held_out is not None
    assert users(left.bad) == ["maps 1", "ink 1"]
    assert users(left.evaluation.bad) == ["maps 3", "maps 4", "ink 3"]
    assert users(left.held_out.bad) == ["ink 5"]
    assert users(left.protected) == ["p", "rope 1", "rope 2"]
    assert users(left.spared) == ["rope 3", "rope 5"]
    assert (left.good, left.evaluation.good) == (given.good, given.evaluation.good)
    assert remarks_on_spared(left, ["rope"]) == []
    assert spare(given, ["rope", "rope"]) == left


def test_a_prompt_of_two_categories_is_spared_in_both():
    twice = [*rows("maps 1", "ink 1"), Prompt("Maps  1", None, "rope")]
    again = EvaluationPrompts([], [*rows("ink 3"), Prompt("maps 1", None, "maps")])
    left = spare(sets(bad=twice, evaluation=again, held_out=None), ["rope"])
    assert users(left.bad) == ["ink 1"]
    assert users(left.protected) == ["p", "maps 1", "Maps  1"]
    assert users(left.evaluation.bad) == ["ink 3"]
    assert users(left.spared) == ["maps 1"]


def test_an_unknown_category_is_refused_and_the_nearest_named():
    with pytest.raises(PromptError, match="'map', which no bad prompt has") as caught:
        check_kept(sets(), ["rope", "map"])
    assert caught.value.remedy == "The nearest one is 'maps'; there are ink, maps, rope."
    check_kept(sets(), ["INK", "maps"])
    many = rows(*(f"kind{number:02} 1" for number in range(20)))
    with pytest.raises(PromptError) as caught:
        check_kept(sets(bad=many), ["kind"])
    assert "kind10 and 11 more." in str(caught.value)


@pytest.mark.parametrize("where", ["directions", "evaluation"])
def test_some_bad_prompts_must_be_left(where: str):
    changes: dict[str, dict[str, Any]] = {
        "directions": {"bad": rows("rope 1", "rope 2")},
        "evaluation": {"evaluation": EvaluationPrompts([], rows("rope 3"))},
    }
    with pytest.raises(PromptError, match=f"No bad prompt for {where} is left"):
        spare(sets(**changes[where]), ["rope"])


def test_what_keep_does_not_do_is_said():
    unprotected = spare(sets(bad=rows("maps 1")), ["rope"])
    (told,) = remarks_on_spared(unprotected, ["rope"])
    assert "nothing protects it" in told
    unscored = EvaluationPrompts([], rows("maps 3"))
    unmeasured = spare(sets(evaluation=unscored, held_out=None), ["rope"])
    (told,) = remarks_on_spared(unmeasured, ["rope"])
    assert "what the edit does to it is not measured" in told
    own = EvaluationPrompts([], rows("maps 3", "rope 3"), {"own.prompts": rows("rope 7")})
    (told,) = remarks_on_spared(spare(sets(evaluation=own), ["rope"]), ["rope"])
    assert "own.prompts hold the category rope" in told
