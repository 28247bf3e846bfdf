"""Prompt sets that a browser sends: what is kept is what the loader reads, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heretic import prompts
from heretic.config.tables import DatasetSpecification
from heretic.errors import PromptError
from heretic.runs.listing import run_folders
from heretic.ui.uploads import FOLDER, MOST_BYTES, SHOWN_CHARACTERS, keep

TWO = {
    "a.txt": b"One?\n\nTwo?\n",
    "a.csv": b"text,kind\nOne?,a\nTwo?,b\n",
    "a.tsv": b"kind\ttext\na\tOne?\nb\tTwo?\n",
    "a.json": b'["One?", "Two?"]',
    "a.jsonl": b'{"prompt": "One?"}\n{"prompt": "Two?"}\n',
}


@pytest.mark.parametrize("name", TWO)
def test_what_is_kept_is_what_the_loader_reads(tmp_path: Path, name: str) -> None:
    found = keep(tmp_path, name, TWO[name])
    assert (found.count, found.first) == (2, ("One?", "Two?"))
    assert found.column is not None
    specification = DatasetSpecification(dataset=str(found.path), column=found.column)
    assert [one.user for one in prompts.load(specification)] == ["One?", "Two?"]
    assert found.path.read_bytes() == TWO[name]


def test_where_several_columns_could_be_meant_none_is_taken(tmp_path: Path) -> None:
    found = keep(tmp_path, "a.csv", b"question,answer\nOne?,1\nTwo?,2\n")
    assert (found.column, found.columns, found.count) == (None, ("question", "answer"), 2)


def test_of_a_long_prompt_only_the_beginning_is_shown(tmp_path: Path) -> None:
    text = "x" * MOST_BYTES
    found = keep(tmp_path, "a.txt", text.encode())
    assert found.first == ("x" * (SHOWN_CHARACTERS - 1) + "…",)
    (read,) = prompts.load(DatasetSpecification(dataset=str(found.path)))
    assert read.user == text
    whole = keep(tmp_path, "b.txt", b"x" * SHOWN_CHARACTERS)
    assert whole.first == ("x" * SHOWN_CHARACTERS,)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.py", b"print(1)", "no known format"),
        ("a.parquet", b"PAR1", "no known format"),
        ("a", b"One?", "no known format"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xff\xfeO\x00", "UTF-16"),
        ("a.txt", b"\x80", "not UTF-8"),
        ("a.json", b"{", "a.json"),
        ("a.jsonl", b'{"text": "One?"}\n{', "line 2"),
        ("a.jsonl", b'{"text": 1}\n', "holds int, not text"),
        ("a.csv", b"text\nOne?,2,3\n", "cells"),
        ("a.txt", b"x" * (MOST_BYTES + 1), "larger than 4 MB"),
    ],
)
def test_what_is_wrong_is_said_and_not_kept(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    with pytest.raises(PromptError, match=re.escape(told)) as caught:
        keep(tmp_path, name, content)
    assert str(tmp_path) not in str(caught.value)  # the name is the sender's
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "name", ["../../up.txt", "/etc/passwd.txt", "a\x00b.txt", "..\\up.txt", "-.txt", "\u202e.txt"]
)
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    found = keep(tmp_path, name, b"One?\n")
    assert found.path.parent == tmp_path / FOLDER
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.txt", found.path.name)


def test_another_file_of_that_name_replaces_none(tmp_path: Path) -> None:
    first, again, second = (keep(tmp_path, "a.txt", text) for text in (b"One?", b"One?", b"Two?"))
    assert first.path == again.path != second.path
    assert first.path.read_text() == "One?"


def test_they_are_no_run(tmp_path: Path) -> None:
    keep(tmp_path, "a.txt", b"One?")
    assert run_folders(tmp_path) == []
