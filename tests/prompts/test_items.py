"""Sets of items in every form that they have on the Hub, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from heretic.config.tables import DatasetSpecification, ItemSpecification
from heretic.errors import PromptError
from heretic.prompts import Item, Prompt, load

EXPECTED = [
    Item("Ice in the sun", None, None, ("melts", "sings"), 0),
    Item("Fish can", None, None, ("fly", "swim"), 1),
]
CONTEXTS = [item.user for item in EXPECTED]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("right", [[0, 1], ["0", "1"], ["A", "B"], ["melts", "swim"]])
def test_a_list_of_endings(tmp_path: Path, right: list[Any]) -> None:
    """As in HellaSwag; the right one by number, letter or text."""
    rows = [
        {"ctx": context, "endings": item.endings, "label": label}
        for context, item, label in zip(CONTEXTS, EXPECTED, right, strict=True)
    ]
    place = written(tmp_path / "items.jsonl", rows)
    chosen = ItemSpecification(dataset=place, column="ctx", endings="endings", right="label")
    assert load(chosen) == EXPECTED
    assert load(chosen.model_copy(update={"split": "train[1:]"})) == EXPECTED[1:]


def test_a_column_for_each_ending(tmp_path: Path) -> None:
    """As in PIQA."""
    rows = [
        {"goal": item.user, "sol1": item.endings[0], "sol2": item.endings[1], "label": item.right}
        for item in EXPECTED
    ]
    place = written(tmp_path / "items.jsonl", rows)
    found = load(
        ItemSpecification(dataset=place, column="goal", endings=("sol1", "sol2"), right="label")
    )
    assert found == EXPECTED


@pytest.mark.parametrize("labels", [["A", "B"], ["1", "2"]])
def test_texts_with_labels(tmp_path: Path, labels: list[str]) -> None:
    """As in ARC, where some labels are numbers that count from 1."""
    rows = [
        {
            "question": item.user,
            "choices": {"text": list(item.endings), "label": labels},
            "answerKey": labels[item.right],
        }
        for item in EXPECTED
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for place in (written(tmp_path / "items.jsonl", rows), str(tmp_path / "saved")):
        found = load(
            ItemSpecification(
                dataset=place,
                column="question",
                endings="choices",
                right="answerKey",
                prefix="Question: ",
                suffix="\nAnswer:",
            )
        )
        assert [item.user for item in found] == [f"Question: {c}\nAnswer:" for c in CONTEXTS]
        assert [item.right for item in found if isinstance(item, Item)] == [0, 1]


def test_last_words(tmp_path: Path) -> None:
    """As in LAMBADA."""
    place = written(tmp_path / "items.jsonl", [{"text": "He lost his hat and bought a new hat"}])
    assert load(ItemSpecification(dataset=place)) == [
        Item("He lost his hat and bought a new", None, None, ("hat",), 0)
    ]


@pytest.mark.parametrize(("delimiter", "context"), [(" ", "a"), ("", "a ")])
def test_spaces_are_not_doubled(tmp_path: Path, delimiter: str, context: str) -> None:
    row = {"text": "a ", "ends": [" b", "c "], "right": 0}
    place = written(tmp_path / "items.jsonl", [row])
    chosen = ItemSpecification(dataset=place, endings="ends", right="right", delimiter=delimiter)
    assert load(chosen) == [Item(context, None, None, ("b", "c"), 0, delimiter)]


def test_items_have_no_system_prompt(tmp_path: Path) -> None:
    place = written(tmp_path / "items.jsonl", [{"text": "a b"}])
    assert load(ItemSpecification(dataset=place), "Be brief.")[0].system is None
    assert load(DatasetSpecification(dataset=place), "Be brief.") == [Prompt("a b", "Be brief.")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "ends": ["b", "c"], "right": 2}, "right ending is 2, and there are 2"),
        ({"text": "a", "ends": ["b", "c"], "right": "2"}, "right ending is '2'"),
        ({"text": "a", "ends": ["b", "c"], "right": -1}, "right ending is -1"),
        ({"text": "a", "ends": ["b", "c"], "right": True}, "right ending is True"),
        ({"text": "a", "ends": ["b", "c"], "right": None}, "right ending is None"),
        ({"text": "a", "ends": ["b", "b"], "right": 0}, "two of its endings are the same"),
        ({"text": "a", "ends": ["b", " "], "right": 0}, "an ending is empty"),
        ({"text": "a", "ends": [], "right": 0}, "there are 0"),
        ({"text": " ", "ends": ["b", "c"], "right": 0}, "its context is empty"),
        ({"text": "a", "ends": ["b", 3], "right": 0}, "an ending is a int, not text"),
        ({"text": "a", "ends": "b", "right": 0}, "its endings are a str, not a list"),
        ({"text": None, "ends": ["b", "c"], "right": 0}, "its context is missing, not text"),
        (
            {"text": "a", "ends": {"text": ["b", "c"], "label": ["A"]}, "right": "A"},
            "labels do not match",
        ),
        (
            {"text": "a", "ends": {"text": ["b", "c"], "label": ["A", "B"]}, "right": "C"},
            "the label 'C'",
        ),
    ],
)
def test_what_is_no_item_is_named_by_its_row(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    rows = [{"text": "x", "ends": ["y", "z"], "right": 0}, row]
    place = written(tmp_path / "items.jsonl", rows)
    with pytest.raises(PromptError, match=f"Row 2 of the set .*items.jsonl.*{said}"):
        load(ItemSpecification(dataset=place, endings="ends", right="right"))


def test_a_text_of_one_word_has_no_context(tmp_path: Path) -> None:
    place = written(tmp_path / "items.jsonl", [{"text": "alone"}])
    with pytest.raises(PromptError, match="fewer than two words"):
        load(ItemSpecification(dataset=place))


def test_half_characters_are_refused(tmp_path: Path) -> None:
    place = written(tmp_path / "items.jsonl", [{"text": "a", "ends": ["b", "\ud800"], "right": 0}])
    with pytest.raises(PromptError, match="half a character"):
        load(ItemSpecification(dataset=place, endings="ends", right="right"))


def test_missing_columns_and_rows_are_named(tmp_path: Path) -> None:
    place = written(tmp_path / "items.jsonl", [{"text": "a", "ends": ["b", "c"], "right": 0}])
    with pytest.raises(PromptError, match="no column 'label'; its columns are text, ends, right"):
        load(ItemSpecification(dataset=place, endings="ends", right="label"))
    with pytest.raises(PromptError, match="is empty"):
        load(ItemSpecification(dataset=place, split="train[1:]", endings="ends", right="right"))


def test_endings_and_the_right_one_need_each_other() -> None:
    for given in ({"endings": "ends"}, {"right": "label"}):
        with pytest.raises(ValueError, match="set both, or neither"):
            ItemSpecification(dataset="x.jsonl", **given)
