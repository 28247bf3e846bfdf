"""Local prompt files are read as they are: by their own name, now, and every word of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heretic.config import DatasetSpecification
from heretic.errors import PromptError
from heretic.utils import load_prompts

KINDS = ["csv", "tsv", "json", "jsonl", "parquet", "txt"]
WORDS = ["null", "NA", "NaN", "None", "n/a", "nan", "#N/A", "-", "true", "2024-01-02", "one"]
ODD = [
    'say "hi"',
    "a, b; c",
    "tab\there",
    "two\nlines",
    " leading",
    "'s",
    "über 你好 🙂",
    "\\n",
    "<NA>",
]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def texts(dataset: str, **options: Any) -> list[str]:
    return load_prompts(DatasetSpecification(dataset=dataset, split="train", **options))


def failure(dataset: str, **options: Any) -> str:
    with pytest.raises(PromptError) as caught:
        texts(dataset, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy
    return message


def write(path: str, prompts: list[str]) -> str:
    """Prompts in a file of the format that its ending says, as the format's own writers do it."""
    import csv

    file, kind = Path(path), Path(path).suffix[1:]
    if kind == "parquet":
        datasets.Dataset.from_dict({"text": prompts}).to_parquet(path)
    elif kind in ("csv", "tsv"):
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="," if kind == "csv" else "\t")
            writer.writerows([["text"], *([prompt] for prompt in prompts)])
    elif kind == "json":
        file.write_text(json.dumps([{"text": prompt} for prompt in prompts]), encoding="utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({"text": prompt}, ensure_ascii=False) for prompt in prompts]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["prompts[1]", "p*", "p?", "{a,b}", "!x", "a b", "**"])
def test_a_name_is_no_pattern(name: str, kind: str):
    for other in ("prompts1", "pq", "a", "b", "x"):
        write(f"{other}.{kind}", ["another file"])
    assert texts(write(f"{name}.{kind}", ["this one"])) == ["this one"]
    Path(f"{name}.{kind}").unlink()
    assert "does not exist" in failure(f"{name}.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_stays(kind: str):
    assert texts(write(f"words.{kind}", WORDS)) == WORDS


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_character_stays(kind: str):
    assert texts(write(f"odd.{kind}", ODD)) == ODD


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_replaced_is_read_anew(kind: str):
    path = write(f"p.{kind}", ["old row"])
    before = Path(path).stat()
    assert texts(path) == ["old row"]
    write(path, ["new row"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(path) == ["new row"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_cache_is_needed(kind: str, monkeypatch: pytest.MonkeyPatch):
    Path("file").touch()
    for variable in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, variable, "file/cache")  # cannot be made
    assert texts(write(f"p.{kind}", ["one"])) == ["one"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "txt"])
def test_line_ends_and_byte_order_marks(kind: str):
    path = Path(write(f"p.{kind}", ["one", "two"]))
    plain = path.read_bytes().replace(b"\r\n", b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    assert texts(str(path)) == ["one", "two"]
    path.write_text(plain.decode(), encoding="utf-16")
    assert "is UTF-16 text. Save it as UTF-8." in failure(str(path))
    path.write_bytes(plain.replace(b"two", "zwölf".encode("latin-1")))
    assert "is not UTF-8 text (line" in failure(str(path))


class TestJson:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ('null\n{"text": "b"}\n', "line 1 holds null, not an object"),
            ('{"text": "a"}\nnull\n', "line 2 holds null"),
            ('\n{"text": "a"}\n7\n', "line 3 holds int"),
            ('"a"\n"b"\n', "line 1 holds str"),
            ('[null, {"text": "b"}]', "element 1 holds null"),
            ('[{"text": "a"}, "b"]', "element 2 holds str"),
            ("null", "line 1 holds null"),
            ('{"text": "a"}\n{"text": \n', "line 2: Expecting value"),
            ("[" * 100_000, "nested too deeply"),
            ('{"text": "a", "n": ' + "9" * 5000 + "}", "integer of more than"),
            ('{"a": [1], "b": []}\n\n', "holds no text"),
        ],
    )
    @pytest.mark.parametrize("kind", ["json", "jsonl"])
    def test_what_is_no_row_is_named(self, content: str, said: str, kind: str):
        Path(f"p.{kind}").write_text(content)
        column = {"column": "a"} if "holds no text" in said else {}
        message = failure(f"p.{kind}", **column)
        assert said in message or "holds list, not text" in message

    @pytest.mark.parametrize(
        "content",
        [
            '["one", "two"]',
            '[\n  {"text": "one"},\n  {"text": null},\n  {"other": NaN},\n  {"text": "two"}\n]',
            '{"text": "one"}\n\n{"other": 1}\n{"text": "two", "other": [{}]}',
            '{\n  "text": ["one", "two"]\n}',
            '{"text": ["one", null, "two"], "n": [1, 2, 3]}',
        ],
    )
    @pytest.mark.parametrize("kind", ["json", "jsonl"])
    def test_forms_of_rows(self, content: str, kind: str):
        Path(f"p.{kind}").write_text(content)
        assert texts(f"p.{kind}") == ["one", "two"]

    def test_one_object_over_several_lines_is_one_row(self):
        Path("p.json").write_text('{\n  "text": "one",\n  "n": 1\n}')
        assert texts("p.json") == ["one"]

    def test_separators_within_texts_split_no_line(self):
        Path("p.jsonl").write_text('{"text": "a\u2028b\x85c"}\n', encoding="utf-8")
        assert texts("p.jsonl") == ["a\u2028b\x85c"]

    def test_half_characters_are_refused(self):
        Path("p.jsonl").write_text('{"text": "a"}\n{"text": "x\\ud800"}\n')
        assert "half a character" in failure("p.jsonl")


class TestCsv:
    def test_a_cell_that_needs_quotation_marks(self):
        Path("p.csv").write_text("text\nHello, world\n")
        assert "line 2 has 2 cells and the header 1" in failure("p.csv")

    @pytest.mark.parametrize("row", ['"never closed\nmore\n', '"a"b\n'])
    def test_a_quotation_mark_in_a_wrong_place(self, row: str):
        Path("p.csv").write_text(f"text\n{row}")
        assert "p.csv cannot be read: line" in failure("p.csv")

    def test_rows_that_are_short_or_end_with_separators(self):
        Path("p.csv").write_text("number,text\n1,one\n2\n\n3,three,,\n")
        assert texts("p.csv") == ["one", "three"]

    def test_a_column_of_figures_is_no_text(self):
        Path("p.csv").write_text("text,n,x\none,1,1.5\ntwo,2,\n3,3,2e5\n")
        assert texts("p.csv") == ["one", "two", "3"]
        assert "holds int, not text" in failure("p.csv", column="n")
        assert "holds float, not text" in failure("p.csv", column="x")

    def test_a_long_cell(self):
        assert texts(write("p.csv", ["x" * 200_000])) == ["x" * 200_000]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"text\n"])
def test_a_damaged_parquet_file(content: bytes):
    Path("p.parquet").write_bytes(content)
    assert "Prompt file p.parquet" in failure("p.parquet")


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b.txt", "~nobody-of-this-name/p.txt", "p.txt/q"])
def test_names_that_no_file_can_have(name: str):
    Path("p.txt").write_text("one\n")
    assert failure(name)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "txt"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_whatever_a_file_holds_is_read_or_refused(kind: str, content: bytes):
    Path(f"any.{kind}").write_bytes(content)
    outcome = ""
    try:
        outcome = "".join(texts(f"any.{kind}"))
    except PromptError as error:
        outcome = str(error).replace("\n", "")
    assert outcome.strip()


class TestFolders:
    """Folders of data files are read by `datasets`, but as they are now and by their own names."""

    def folder(self, name: str, kind: str, **splits: list[str]) -> str:
        Path(name).mkdir(exist_ok=True)
        for split, prompts in splits.items():
            write(f"{name}/{split}.{kind}", prompts)
        return name

    @pytest.mark.parametrize("kind", KINDS)
    def test_names_of_folders_are_no_patterns(self, kind: str):
        self.folder("g1", kind, train=["another folder"])
        assert texts(self.folder("g[1]", kind, train=["this one"])) == ["this one"]

    def test_names_in_folders_are_no_patterns(self):
        folder = self.folder(
            "f", "jsonl", **{"train[1]": ["one"], "train1": ["two"], "test": ["x"]}
        )
        assert sorted(texts(folder)) == ["one", "two"]

    def test_they_are_read_anew_and_every_word_stays(self):
        for words in (["old", "row"], ["null", "NA"]):
            assert texts(self.folder("f", "csv", train=words)) == words
            os.utime("f/train.csv", (1e9, 1e9))

    def test_a_row_that_is_no_object(self):
        self.folder("f", "jsonl")
        Path("f/train.jsonl").write_text('null\n{"text": "b"}\n')
        assert "train.jsonl cannot be read: line 1 holds null" in failure("f")
