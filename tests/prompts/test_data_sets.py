"""A prompt set of several data sets, and data sets with subsets (`config`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest

from heretic.config import DatasetSpecification, Settings, load_settings
from heretic.config.tables import Datasets, each_of
from heretic.errors import ExportError, PromptError, ScorerError, SettingsError
from heretic.export.documents.places import digests, found_again, shortened
from heretic.pipeline.identity import fingerprint, used_prompts
from heretic.prompts import EvaluationPrompts, PromptSets, held_out, load
from heretic.scorers import load_scorers


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, lines in (("a", 3), ("b", 4), ("both", 0)):
        Path(f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(lines)))
    Path("both.txt").write_text("a 0\na 1\na 2\nb 0\nb 1\nb 2\nb 3\n")


def sets(*dicts: dict[str, Any]) -> Datasets:
    return tuple(DatasetSpecification(**one) for one in dicts)


def users(found: Datasets) -> list[str]:
    return [prompt.user for prompt in load(found, "Be brief.")]


class TestSeveral:
    def test_prompts_follow_one_another_each_read_as_its_own_table_says(self):
        both = sets({"dataset": "b.txt", "split": "[:2]", "prefix": "> "}, {"dataset": "a.txt"})
        assert users(both) == ["> b 0", "> b 1", "a 0", "a 1", "a 2"]
        own = sets(
            {"dataset": "a.txt", "split": "[:1]", "system_prompt": "No."}, {"dataset": "b.txt"}
        )
        assert [prompt.system for prompt in load(own, "Be brief.")][:2] == ["No.", "Be brief."]

    def test_held_out_prompts_are_the_rows_after_those_of_each(self):
        used = sets({"dataset": "a.txt", "split": "[:1]"}, {"dataset": "b.txt", "split": "[:2]"})
        assert [prompt.user for prompt in held_out(None, [(used, load(used))])] == [
            "a 1", "a 2", "b 2", "b 3",
        ]  # fmt: skip

    def test_toml_takes_them_and_they_survive_a_record(self):
        Path("config.toml").write_text(
            '[[bad_prompts]]\ndataset = "a.txt"\n\n'
            '[[bad_prompts]]\ndataset = "org/b"\nconfig = "en"\nsplit = "test"\n'
        )
        settings = load_settings({"model": "m"})
        first, second = each_of(settings.bad_prompts)
        assert (first.dataset, first.split) == ("a.txt", "train")  # not the default's slice
        assert (second.dataset, second.config, second.split) == ("org/b", "en", "test")
        assert Settings.restore(settings.to_dict()) == settings
        assert isinstance(settings.to_dict()["bad_prompts"], list)
        assert isinstance(settings.to_dict()["good_prompts"], dict)

    def test_so_does_a_variable(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HERETIC_GOOD_PROMPTS", '[{"dataset": "a.txt"}, {"dataset": "b.txt"}]')
        assert [part.dataset for part in each_of(load_settings({"model": "m"}).good_prompts)] == [
            "a.txt", "b.txt",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("good_prompts = []", r"Setting good_prompts in config\.toml \(\[\]\)"),
            ("[[good_prompts]]\nsplit = 'train'", r"good_prompts\.0\.dataset in config\.toml"),
            ("[[good_prompts]]\ndatset = 'a'", r"good_prompts\.datset .* good_prompts\.dataset\?"),
            ("good_prompts = ['a.txt']", r"good_prompts\.0 in config\.toml"),
        ],
    )
    def test_what_is_wrong_is_told_by_its_place(self, text: str, said: str):
        Path("config.toml").write_text(text + "\n")
        with pytest.raises(SettingsError, match=said):
            load_settings({"model": "m"})

    def test_one_key_cannot_change_a_list(self, monkeypatch: pytest.MonkeyPatch):
        Path("config.toml").write_text('good_prompts = [{dataset = "a.txt"}, {dataset = "b.txt"}]')
        options = {"model": "m", "good_prompts": {"split": "train[:2]"}}
        with pytest.raises(SettingsError, match=r"in config\.toml is a list .*--good-prompts\.spl"):
            load_settings(options)
        monkeypatch.setenv("HERETIC_GOOD_PROMPTS__DATASET", "both.txt")
        settings = load_settings(options)
        assert [(p.dataset, p.split) for p in each_of(settings.good_prompts)] == [
            ("both.txt", "train[:2]")
        ]

    def test_a_list_replaces_a_table(self):
        Path("config.toml").write_text('[good_prompts]\ndataset = "both.txt"\nprefix = "> "\n')
        both = [{"dataset": "a.txt"}, {"dataset": "b.txt"}]
        found = each_of(load_settings({"model": "m", "good_prompts": both}).good_prompts)
        assert [(part.dataset, part.prefix) for part in found] == [("a.txt", ""), ("b.txt", "")]

    def test_scorers_with_prompts_of_their_own_take_them(self):
        own = {"prompts": [{"dataset": "a.txt"}, {"dataset": "b.txt"}]}
        values = {"model": "m", "scorers": [{"plugin": "keyword", "name": "k"}]}
        (scorer,) = load_scorers(Settings.restore({**values, "scorer": {"k": own}}))
        (found,) = scorer.sets().values()
        assert len(load(found)) == 7
        wrong = {"k": {"prompts": [{"dataset": "a.txt"}, {}]}}
        with pytest.raises(ScorerError, match=r"\[scorer\.k\] prompts\.1\.dataset: Field required"):
            load_scorers(Settings.restore({**values, "scorer": wrong}))


def make(**values: Any) -> Settings:
    return Settings.restore({"model": "org/m@0", "model_commit": "0" * 40, **values})


def prompt_sets(settings: Settings) -> PromptSets:
    kinds = ("good", "bad", "good_evaluation", "bad_evaluation")
    good, bad, more_good, more_bad = (load(getattr(settings, f"{k}_prompts")) for k in kinds)
    return PromptSets(good=good, bad=bad, evaluation=EvaluationPrompts(more_good, more_bad))


class TestIdentity:
    OTHERS: ClassVar[dict[str, Any]] = {
        f"{kind}_prompts": {"dataset": "both.txt", "split": "[:2]"}
        for kind in ("good", "good_evaluation", "bad_evaluation")
    }

    def test_the_same_prompts_have_the_same_digest_however_they_are_written(self):
        written: list[Any] = [
            {"dataset": "both.txt", "split": "train"},
            [{"dataset": "a.txt"}, {"dataset": "b.txt"}],
            [{"dataset": "a.txt"}, {"dataset": "b.txt", "split": "[:2]"},
             {"dataset": "b.txt", "split": "[2:]"}],
        ]  # fmt: skip
        runs = [make(bad_prompts=bad, **self.OTHERS) for bad in written]
        found = [fingerprint(settings, prompt_sets(settings)) for settings in runs]
        assert found[0] == found[1] == found[2]

    def test_documents_name_each_data_set_with_its_subset(self):
        settings = make(
            bad_prompts=[{"dataset": "org/a", "config": "en"}, {"dataset": str(Path("b.txt"))}],
            **self.OTHERS,
        )
        local = make(bad_prompts=[{"dataset": "a.txt"}, {"dataset": "b.txt"}], **self.OTHERS)
        (bad,) = (u for u in used_prompts(settings, prompt_sets(local)) if u.use[:3] == "bad"
                  and "directions" in u.use)  # fmt: skip
        assert bad.source == "org/a (en), train and b.txt, train"

    def test_a_reproduction_finds_each_file_again(self, tmp_path: Path):
        settings = make(
            bad_prompts=[{"dataset": str(tmp_path / "a.txt")}, {"dataset": "org/hub"},
                         {"dataset": str(tmp_path / "b.txt")}],
        ).to_dict()  # fmt: skip
        recorded, cut = digests(settings), shortened(settings)
        assert set(recorded) == {"bad_prompts.0.dataset", "bad_prompts.2.dataset"}
        assert [part["dataset"] for part in cut["bad_prompts"]] == ["a.txt", "org/hub", "b.txt"]
        there = found_again(cut, recorded, {}, tmp_path / "export")
        assert [Path(part["dataset"]).name for part in there["bad_prompts"]][::2] == [
            "a.txt", "b.txt",
        ]  # fmt: skip
        assert Path(there["bad_prompts"][0]["dataset"]).read_text() == Path("a.txt").read_text()
        Path("b.txt").write_text("other\n")
        with pytest.raises(ExportError, match=r"bad_prompts\.2\.dataset b\.txt.*Put b"):
            found_again(cut, recorded, {}, tmp_path / "export")
        said = {"bad_prompts": {"dataset": "both.txt"}}
        assert found_again(cut, recorded, said, tmp_path / "export") == cut


class TestSubsets:
    """Subsets as the files of a data set declare them; the Hub's are read by the same library."""

    @pytest.fixture(autouse=True)
    def _folder(self) -> None:
        folder = Path("set")
        folder.mkdir()
        for language in ("en", "de"):
            (folder / f"{language}.jsonl").write_text(f'{{"text": "in {language}"}}\n')
        configs = "".join(f"- config_name: {x}\n  data_files: {x}.jsonl\n" for x in ("en", "de"))
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")

    def test_config_chooses_one(self):
        for language in ("en", "de"):
            assert users(DatasetSpecification(dataset="set", config=language)) == [f"in {language}"]

    @pytest.mark.parametrize(
        ("config", "said"), [(None, "has several subsets"), ("fr", "has no subset 'fr'")]
    )
    def test_the_error_names_those_that_exist(self, config: str | None, said: str):
        with pytest.raises(
            PromptError, match=rf"set {said}; it has (en, de|de, en)\. Set `config`"
        ):
            load(DatasetSpecification(dataset="set", config=config))

    def test_files_and_saved_folders_have_none(self):
        datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk("saved")
        for place in ("a.txt", "saved"):
            with pytest.raises(PromptError, match=f"{place}.* has no subsets"):
                load(DatasetSpecification(dataset=place, config="en"))
