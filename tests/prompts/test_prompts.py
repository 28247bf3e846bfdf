"""Prompt sets: every kind of place, slices, and errors that say what exists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from heretic.config import DatasetSpecification
from heretic.errors import PromptError
from heretic.prompts import HELD_OUT, Prompt, held_out, load, places, shared_prompts
from heretic.prompts.places import DatasetRows
from heretic.utils import load_prompts

TWENTY = [f"prompt {i}" for i in range(20)]


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def texts(dataset: str, split: str = "train", **options: Any) -> list[str]:
    return load_prompts(DatasetSpecification(dataset=dataset, split=split, **options))


def rows(column: str = "text") -> datasets.Dataset:
    return datasets.Dataset.from_dict({column: TWENTY, "number": list(range(20))})


def write(kind: str) -> str:
    """Twenty prompts in a file, or a folder, of that kind."""
    path = Path(f"prompts.{kind}")
    if kind == "txt":
        path.write_text("\n".join(TWENTY) + "\n")
    elif kind in {"csv", "tsv"}:
        mark = "," if kind == "csv" else "\t"
        path.write_text(
            f"number{mark}text\n" + "".join(f"{i}{mark}{t}\n" for i, t in enumerate(TWENTY))
        )
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TWENTY))
    elif kind == "json":
        path.write_text(json.dumps([{"text": text} for text in TWENTY]))
    elif kind == "parquet":
        rows().to_parquet(str(path))
    elif kind == "saved":
        rows().save_to_disk(str(path))
    else:
        datasets.DatasetDict(train=rows()).save_to_disk(str(path))
    return str(path)


KINDS = ["txt", "csv", "tsv", "jsonl", "json", "parquet", "saved", "saved_splits"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_place(kind: str):
    assert texts(write(kind)) == TWENTY


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:4]", TWENTY[:4]),
        ("[:4]", TWENTY[:4]),
        ("[10%:]", TWENTY[2:]),
        ("train[10:15]", TWENTY[10:15]),
        ("[-3:]", TWENTY[-3:]),
        ("[:-50%]", TWENTY[:10]),
        ("train[:400]", TWENTY),
        ("train[:1]+train[19:]", [TWENTY[0], TWENTY[19]]),
        ("", TWENTY),
    ],
)
def test_slices(kind: str, split: str, expected: list[str]):
    assert texts(write(kind), split) == expected


@pytest.mark.parametrize(
    "split",
    ["train", "train[:]", "train[:7]", "train[7:]", "train[-3:]", "train[:-3]", "train[-30:4]",
     "train[9:2]", "train[15:99]", "train[00:5]"],
)  # fmt: skip
def test_plain_slices_are_those_of_datasets(split: str):
    [part] = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 20})
    wanted = TWENTY[part.from_ : part.to]
    found = places._plainly_sliced(places._Source({"train": DatasetRows(rows())}), split)
    assert found is not None
    assert [TWENTY[row] for row in found[1]] == wanted


def test_a_slice_of_a_file_imports_no_library_of_data_sets():
    code = (
        "import sys; from heretic.config import DatasetSpecification as Specification; "
        "from heretic.prompts import load; "
        f"print(len(load(Specification(dataset={write('txt')!r}, split='train[3:8]'), None))); "
        "assert 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5"]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json", "parquet"])
def test_a_single_file_answers_to_every_split_name(kind: str):
    assert texts(write(kind), "test[:2]") == TWENTY[:2]


def test_a_saved_data_set_that_knows_its_split_answers_to_that_one():
    datasets.Dataset.from_dict({"text": TWENTY}, split="train[:20]").save_to_disk("known")
    assert texts("known", "train[:2]") == TWENTY[:2]
    assert texts("known", "[:2]") == TWENTY[:2]
    with pytest.raises(PromptError, match=r"no split 'test\[:2\]'; its splits are train"):
        texts("known", "test[:2]")


def test_a_folder_of_data_files():
    Path("folder").mkdir()
    Path("folder/train.jsonl").write_text('{"text": "a"}\n')
    Path("folder/test.jsonl").write_text('{"text": "b"}\n')
    assert texts("folder", "test") == ["b"]


def test_blank_lines_are_skipped_and_odd_separators_kept():
    Path("p.txt").write_text("\ufeffone\n\n   \r\ntwo\u2028still two\r\n", encoding="utf-8")
    assert texts("p.txt") == ["one", "two\u2028still two"]


def test_prefix_suffix_and_system_prompts():
    Path("p.txt").write_text("one\n")
    specification = DatasetSpecification(dataset="p.txt", prefix="<", suffix=">")
    assert load(specification) == [Prompt("<one>", None)]
    assert load(specification, "general") == [Prompt("<one>", "general")]
    own = specification.model_copy(update={"system_prompt": "own"})
    assert load(own, "general") == [Prompt("<one>", "own")]


def test_another_column():
    rows("question").save_to_disk("asked")
    assert texts("asked", column="question") == TWENTY


def failure(dataset: str, split: str = "train", **options: Any) -> str:
    with pytest.raises(PromptError) as caught:
        texts(dataset, split, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_column_names_the_columns():
    assert "no column 'prompt'; its columns are number, text" in failure(
        write("csv"), column="prompt"
    )


def test_a_column_that_holds_no_text():
    assert "Column 'number'" in failure(write("csv"), column="number")
    assert "holds int, not text" in failure(write("csv"), column="number")


def test_missing_split_names_the_splits():
    datasets.DatasetDict(train=rows(), test=rows()).save_to_disk("two")
    assert "no split 'valid[:3]'; its splits are train, test" in failure("two", "valid[:3]")
    message = failure("two", "[:3]")
    assert "its splits are train, test" in message
    assert "train[:3]" in message


@pytest.mark.parametrize("split", ["train[", "train[x:]", "train[:200%]", "train[1.5:]", "[:]x",
                                   f"train[:{'9' * 5000}]"])  # fmt: skip
def test_malformed_slices(split: str):
    assert "cannot be sliced" in failure(write("txt"), split)


def test_empty_sets():
    Path("empty.txt").write_text("\n \n")
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("text\n")
    assert "split train, is empty; it has train (0 rows)" in failure("empty.txt")
    for name in ("empty.csv", "header.csv"):
        assert f"Prompt file {name} is empty" in failure(name)
    message = failure(write("txt"), "train[50:]")
    assert "split train[50:], is empty; it has train (20 rows)" in message


def test_missing_file_names_its_neighbours():
    write("txt")
    assert "does not exist; its folder has prompts.txt" in failure("prompt.txt")
    assert "nor does its folder nowhere" in failure("nowhere/prompt.txt")


def test_unreadable_files():
    Path("bad.jsonl").write_text('{"text":')
    Path("bad.csv").write_bytes(b"text\n\xff\xfe\n")
    Path("prompts.doc").write_text("x")
    Path("folder").mkdir()
    assert "bad.jsonl cannot be read: line 1: Expecting value" in failure("bad.jsonl")
    assert "bad.csv is not UTF-8 text (line 2)" in failure("bad.csv")
    assert "no known format. Known formats are .csv" in failure("prompts.doc")
    assert "Prompt folder folder cannot be read" in failure("folder")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = failure("nobody/nothing")
    assert "Prompt set nobody/nothing is not in the local cache" in message
    assert "name a local file or folder" in message


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (datasets.exceptions.DatasetNotFoundError("no such set"), "hf auth login"),
        (ConnectionError("no route"), "cannot be reached"),
        (
            ValueError("Config name is missing.\nPick one"),
            "cannot be read: Config name is missing.",
        ),
        (datasets.exceptions.DatasetGenerationError("x"), "cannot be read"),
    ],
)
def test_errors_of_the_hub_have_a_remedy(
    raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert said in failure("owner/set", commit="abc")


def test_a_set_on_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def give(path: str, name: str | None, **options: Any) -> datasets.DatasetDict:
        asked.append((path, name, options))
        return datasets.DatasetDict(train=rows(), test=rows().select(range(5)))

    monkeypatch.setattr(datasets, "load_dataset", give)
    assert texts("owner/set", "test[:100]", commit="abc") == TWENTY[:5]
    assert texts("owner/set", "test[:100]", config="en") == TWENTY[:5]
    assert asked == [
        ("owner/set", None, {"revision": "abc"}),
        ("owner/set", "en", {"revision": None}),
    ]


def test_shared_prompts():
    first = [Prompt("How  are you?"), Prompt("Why?")]
    assert shared_prompts(first, [Prompt("how are YOU?")]) == ["How  are you?"]
    assert shared_prompts(first, [Prompt("When?")]) == []


class TestHeldOut:
    @pytest.fixture(autouse=True)
    def _files(self) -> None:
        self.path = write("txt")

    def of(self, split: str, dataset: str | None = None, **options: Any) -> DatasetSpecification:
        return DatasetSpecification(dataset=dataset or self.path, split=split, **options)

    def rest(
        self, *used: DatasetSpecification, explicit: DatasetSpecification | None = None
    ) -> list[str]:
        pairs = [(specification, load(specification)) for specification in used]
        return [prompt.user for prompt in held_out(explicit, pairs)]

    @pytest.mark.parametrize(
        "splits",
        [
            ("train[:4]", "train[4:9]"),
            ("train[4:9]", "train[:4]"),  # the evaluation before the directions, in one split
            ("[:9]", "[2:4]"),
            ("train[:6]", "train[4:9]"),  # with rows in common
        ],
    )
    @pytest.mark.parametrize("kind", ["txt", "saved_splits"])
    def test_are_the_rows_that_follow_those_in_use(self, splits: tuple[str, str], kind: str):
        dataset = write(kind)
        for order in (splits, splits[::-1]):
            used = [self.of(split, dataset) for split in order]
            assert self.rest(*used) == TWENTY[9:]

    def test_rows_before_a_slice_may_have_been_skipped_for_a_reason(self):
        assert self.rest(self.of("train[10:15]"), self.of("train[15:18]")) == TWENTY[18:]

    def test_of_two_sets_are_those_of_the_evaluation_first(self):
        Path("other.txt").write_text("\n".join([*"abc", TWENTY[1], TWENTY[15]]))
        used = [self.of("train[:2]"), self.of("train[:1]", "other.txt")]
        assert self.rest(*used) == [*TWENTY[2:], "b", "c"]  # each once, and none in use

    def test_what_is_in_use_is_left_out_however_it_is_written(self):
        Path("again.txt").write_text("a\nPROMPT  3\nb\n")
        assert self.rest(self.of("[:1]", "again.txt"), self.of("[3:]")) == ["b"]

    def test_are_a_hundred_at_most(self):
        many = [f"line {i}" for i in range(3 * HELD_OUT)]
        Path("many.txt").write_text("\n".join(many))
        first, second = self.of("[:5]", "many.txt"), self.of("[5:7]", "many.txt")
        assert self.rest(first, second) == many[7 : 7 + HELD_OUT - 2] + many[105:107]

    @pytest.mark.parametrize(
        "split", ["train", "", "train[5:]", "train[:50%]", "[:-5]", "train[:3]+train[5:9]"]
    )
    def test_there_are_none_where_a_slice_has_no_number_as_end(self, split: str):
        assert self.rest(self.of(split)) == []

    @pytest.mark.parametrize("split", ["train[:20]", "train[:400]", "train[10:20]"])
    def test_there_are_none_where_no_row_is_left(self, split: str):
        assert self.rest(self.of(split)) == []

    def test_an_explicit_set_is_taken_instead(self):
        Path("own.txt").write_text("\n".join(["mine", TWENTY[0], "yours"]))
        used = self.of("train[:4]")
        assert self.rest(used, explicit=self.of("train", "own.txt")) == ["mine", "yours"]
        with pytest.raises(PromptError, match="does not exist"):
            self.rest(used, explicit=self.of("train", "missing.txt"))

    def test_an_explicit_set_has_no_limit(self):
        many = [f"line {i}" for i in range(HELD_OUT + 5)]
        Path("many.txt").write_text("\n".join(many))
        assert self.rest(self.of("[:1]"), explicit=self.of("train", "many.txt")) == many

    def test_are_asked_as_the_set_they_come_from(self):
        used = self.of("train[:18]", prefix="<", suffix=">", system_prompt="own")
        found = held_out(None, [(used, load(used))], "general")
        assert found == [Prompt(f"<{text}>", "own") for text in TWENTY[18:]]
        plain = self.of("train[:19]")
        assert held_out(None, [(plain, [])], "general") == [Prompt(TWENTY[19], "general")]
