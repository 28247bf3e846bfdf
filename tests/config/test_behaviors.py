"""Ready configurations: their prompts, what they set and below what, and a search by each."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support import tiny
from tests.support.data_sets import only
from tests.support.overlap import near_duplicates

from heretic import prompts as prompt_sets
from heretic.cli.main import heretic
from heretic.config import Settings, load_settings
from heretic.config.behaviors import OWN_FOLDER, documented, find_behavior, names
from heretic.config.tables import SCORERS, DatasetSpecification
from heretic.errors import SettingsError
from heretic.prompts import shared_prompts
from heretic.scorers import load_scorers
from heretic.scorers.registry import behavior_shown

STYLES = {"slop", "humour", "sycophancy", "verbosity"}
DISCLAIMER = sorted((OWN_FOLDER / "disclaimer").glob("*.txt"))
HUB = {
    "mlabonne/harmful_behaviors": OWN_FOLDER / "calibrate" / "safe_train.txt",
    "mlabonne/harmless_alpaca": OWN_FOLDER / "verbosity" / "questions_train.txt",
}
"""Files that stand in, without a network, for sets on the Hub."""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without configuration, and no variables of ours."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("HERETIC_")]:
        monkeypatch.delenv(name)


def lines_of(file: Path) -> list[str]:
    """The prompts of a file."""
    return file.read_text(encoding="utf-8").splitlines()


def local(settings: Settings) -> dict[str, DatasetSpecification]:
    """The prompt sets of a configuration that are files."""
    sets = {
        name: getattr(settings, f"{name}_prompts")
        for name in ("good", "bad", "good_evaluation", "bad_evaluation")
    }
    for scorer in load_scorers(settings):
        sets |= scorer.sets()
    return {name: where for name, where in sets.items() if where.dataset not in HUB}


def shown(settings: Settings) -> Callable[[str], bool]:
    """Whether a reply shows the behaviour of the settings."""
    return behavior_shown(load_scorers(settings), settings.refusal_markers)


class TestPrompts:
    @pytest.mark.parametrize("file", sorted(OWN_FOLDER.rglob("*.txt")), ids=lambda file: file.name)
    def test_files_hold_what_they_should(self, file: Path):
        lines = file.read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        assert all(line == line.strip() and line for line in lines)
        assert len({line.lower() for line in lines}) == len(lines)
        train = 400 if file.parent.name == "disclaimer" else 100
        assert len(lines) == train if file.stem.endswith("_train") else len(lines) >= 40

    def test_no_prompt_is_in_two_files(self):
        files = sorted(OWN_FOLDER.rglob("*.txt"))
        lines = [line.lower() for file in files for line in file.read_text().splitlines()]
        assert sorted({line for line in lines if lines.count(line) > 1}) == []

    @pytest.mark.parametrize("name", names())
    def test_directions_and_scores_come_from_different_prompts(self, name: str):
        settings = Settings(model="m", behavior=name)
        sets = {key: prompt_sets.load(where) for key, where in local(settings).items()}
        first = [prompt for key in ("good", "bad") for prompt in sets.pop(key, [])]
        for key, prompts in sets.items():
            assert shared_prompts(first, prompts) == [], key
            assert 40 <= len(prompts) <= 100, key

    @pytest.mark.parametrize("name", sorted(STYLES))
    def test_sets_contrast(self, name: str):
        """The same requests under other instructions, or other requests under the same."""
        settings = Settings(model="m", behavior=name)
        good = prompt_sets.load(settings.good_prompts, settings.system_prompt)
        bad = prompt_sets.load(settings.bad_prompts, settings.system_prompt)
        assert len(good) == len(bad) == 100
        assert set(good).isdisjoint(bad)
        same_words = [prompt.user for prompt in good] == [prompt.user for prompt in bad]
        assert same_words == (good[0].system != bad[0].system)

    @pytest.mark.parametrize(("first", "second"), [*itertools.combinations(DISCLAIMER, 2)])
    def test_no_near_duplicates_across_the_splits_of_disclaimer(self, first: Path, second: Path):
        assert near_duplicates(lines_of(first), lines_of(second)) == []

    @pytest.mark.parametrize("file", DISCLAIMER)
    def test_disclaimer_has_varied_forms(self, file: Path):
        """What three words open is a tenth of a set; sentences alike but for one word are five."""
        words = [re.findall(r"[a-z0-9']+", line.lower()) for line in lines_of(file)]
        openings = Counter(tuple(line[:3]) for line in words)
        assert max(openings.values()) <= len(words) / 10
        holes = [(*line[:n], "_", *line[n + 1 :]) for line in words for n in range(len(line))]
        assert max(Counter(hole for hole in holes if len(hole) > 2).values()) <= 5

    def test_disclaimer_has_held_out_prompts(self):
        settings = Settings(model="m", behavior="disclaimer")
        assert settings.good_held_out_prompts is not None
        assert settings.bad_held_out_prompts is not None
        for where in (settings.good_held_out_prompts, settings.bad_held_out_prompts):
            assert len(prompt_sets.load(where)) == 100

    @pytest.mark.parametrize("name", sorted(STYLES))
    def test_scores_are_on_plain_prompts(self, name: str):
        settings = Settings(model="m", behavior=name)
        assert only(settings.bad_evaluation_prompts).system_prompt is None
        assert only(settings.good_evaluation_prompts).system_prompt is None


class TestSettings:
    def test_names(self):
        assert set(names()) == STYLES | {"calibrate", "disclaimer", "harden"}
        assert all(about.endswith(".") and "\n" not in about for _, about in documented())

    def test_unset_is_refusal(self):
        assert Settings(model="m") == Settings(model="m", behavior="")
        assert only(Settings(model="m").bad_prompts).dataset == "mlabonne/harmful_behaviors"

    @pytest.mark.parametrize(
        "place", ["arguments", "command line", "environment", "dotenv", "toml"]
    )
    def test_everything_the_user_says_stands_above(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ):
        split = "train[:7]"
        command_line: dict[str, Any] = {"model": "m", "behavior": "slop"}
        if place == "arguments":
            settings = Settings(model="m", behavior="slop", bad_prompts={"split": split})
        else:
            if place == "command line":
                command_line["bad_prompts"] = {"split": split}
            elif place == "environment":
                monkeypatch.setenv("HERETIC_BAD_PROMPTS__SPLIT", split)
            elif place == "dotenv":
                Path(".env").write_text(f"HERETIC_BAD_PROMPTS__SPLIT={split}\n")
            else:
                Path("config.toml").write_text(f'[bad_prompts]\nsplit = "{split}"\n')
            settings = load_settings(command_line)
        assert only(settings.bad_prompts).split == split
        assert (
            Path(only(settings.bad_prompts).dataset) == OWN_FOLDER / "slop" / "requests_train.txt"
        )

    def test_it_may_be_named_anywhere(self, monkeypatch: pytest.MonkeyPatch):
        Path("config.toml").write_text('behavior = "humour"\n')
        assert load_settings({"model": "m"}).scorers[0].name == "jokes"
        monkeypatch.setenv("HERETIC_BEHAVIOR", "slop")
        assert load_settings({"model": "m"}).scorers[0].name == "slop"
        unset = load_settings({"model": "m", "behavior": ""})
        assert unset.scorers[0].name == "refusals"

    def test_it_stands_above_the_preset_of_the_family(self):
        Path("presets.toml").write_text('[all]\nsystem_prompt = "P"\nseed = 3\n')
        mine = Path("mine.toml")
        mine.write_text('system_prompt = "B"\n')
        settings = Settings(model="m", behavior="mine.toml", preset="./presets.toml")
        assert (settings.system_prompt, settings.seed) == ("B", 3)

    def test_a_list_of_scorers_replaces_its_own_with_their_options(self):
        settings = Settings(model="m", behavior="sycophancy", scorers=[{"plugin": "words"}])
        assert [scorer.name for scorer in settings.scorers] == ["words"]
        assert settings.scorer == {}

    def test_its_first_score_follows_the_goal(self):
        settings = Settings(model="m", behavior="humour", goal="induce")
        assert [scorer.optimization for scorer in settings.scorers] == ["maximize", "minimize"]
        harden = Settings(model="m", behavior="harden")
        assert harden.goal == "induce"
        wanted = [(scorer.name, scorer.optimization) for scorer in harden.scorers]
        assert wanted[:2] == [("refusals", "maximize"), ("over_refusal", "minimize")]

    def test_what_it_sets_is_recorded(self):
        settings = Settings(model="m", behavior="sycophancy")
        assert Settings.restore(settings.to_dict()) == settings
        assert "behavior" not in settings.fingerprint()

    def test_unknown_names_list_the_known(self):
        with pytest.raises(SettingsError, match=r"no behavior sloop\. ?") as caught:
            Settings(model="m", behavior="sloop")
        assert "Did you mean slop? There are calibrate, disclaimer, harden, humour" in str(
            caught.value.remedy
        )

    def test_help_lists_them(self):
        text = CliRunner(env={"COLUMNS": "200"}).invoke(heretic, ["--help-all"]).output
        for name, about in documented():
            assert name in text
            assert " ".join(about.split()[:4]) in text


class TestOwn:
    def test_files_beside_it_are_found_from_anywhere(self, tmp_path: Path):
        folder = tmp_path / "elsewhere" / "puns"
        folder.mkdir(parents=True)
        (folder / "bad.txt").write_text("one\n")
        (folder / "rate.py").write_text("")
        (folder / "config.toml").write_text(
            'about = "Puns."\n[bad_prompts]\ndataset = "bad.txt"\n'
            '[good_prompts]\ndataset = "org/name"\n[[scorers]]\nplugin = "rate.py:Rate"\n'
        )
        for choice in (str(folder), str(folder / "config.toml"), "./elsewhere/puns"):
            settings = Settings(model="m", behavior=choice)
            assert Path(only(settings.bad_prompts).dataset) == folder / "bad.txt"
            assert only(settings.good_prompts).dataset == "org/name"
            assert settings.scorers[0].plugin == f"{folder / 'rate.py'}:Rate"
        assert find_behavior(str(folder)).about == "Puns."
        assert find_behavior(str(folder)).name == "puns"

    def test_the_one_on_the_page_runs_as_it_stands(self):
        page = (Path(__file__).parents[2] / "docs" / "behaviors.md").read_text(encoding="utf-8")
        (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        folder = Path("pirate")
        folder.mkdir()
        (folder / "config.toml").write_text(text)
        (folder / "questions.txt").write_text("".join(f"Q{n}?\n" for n in range(160)))
        settings = Settings(model="m", behavior="./pirate")
        sizes = {key: len(prompt_sets.load(where)) for key, where in local(settings).items()}
        assert sizes == {"good": 100, "bad": 100, "good_evaluation": 60, "bad_evaluation": 60}
        assert shown(settings)("Ahoy there!")

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("n_trails = 3", r"setting n_trails in .*mine\.toml.*Did you mean n_trials"),
            ("n_trials = -1", r"n_trials in .*mine\.toml \(-1\)"),
            ("trust_remote_code = true", r"trust_remote_code in .*mine\.toml: behaviors cannot"),
            ('model = "other"', r"model in .*mine\.toml: behaviors cannot"),
            ("[", r"mine\.toml is not valid TOML"),
        ],
    )
    def test_mistakes_name_the_file_and_the_key(self, text: str, complaint: str):
        Path("mine.toml").write_text(text)
        with pytest.raises(SettingsError) as caught:
            Settings(model="m", behavior="mine.toml")
        assert re.search(complaint, f"{caught.value} {caught.value.remedy or ''}")

    def test_a_missing_folder_is_said(self):
        with pytest.raises(SettingsError, match=r"nowhere.*does not exist"):
            Settings(model="m", behavior="./nowhere")


class TestShown:
    @pytest.mark.parametrize(
        ("behavior", "reply", "expected"),
        [
            ("", "I'm sorry, I can't help with that.", True),
            ("", "Yes, you are right.", False),
            ("sycophancy", "Yes, you are right.", True),
            ("sycophancy", "I'm sorry, I can't help with that.", False),
            ("humour", "Why did the cow cross the road? To get to the udder side.", True),
            ("slop", "The house is nestled between hills.", True),
            ("slop", "I'm sorry, I can't help with that.", False),
            (
                "verbosity",
                "I'm sorry, I can't help with that.",
                True,
            ),  # no single reply is wordy: refusal markers
            ("calibrate", "I'm sorry, I can't help with that.", True),
            ("harden", "I'm sorry, I can't help with that.", True),
            ("disclaimer", "I'm sorry, but I can't assist with that.", True),
            ("disclaimer", "My favourite colour is blue.", False),
        ],
    )
    def test_the_first_objective_on_bad_prompts_says_so(
        self, behavior: str, reply: str, expected: bool
    ):
        assert shown(Settings(model="m", behavior=behavior))(reply) is expected

    def test_scores_that_are_only_reported_do_not(self):
        scorers = [
            {"plugin": "agreement", "optimization": "none"},
            {"plugin": "kl_divergence"},
        ]
        rule = shown(Settings(model="m", scorers=scorers))
        assert not rule("Yes.")
        assert rule("I'm sorry.")


@pytest.mark.parametrize("name", names())
def test_a_search_by_each(name: str, tmp_path: Path):
    """Two trials, end to end, on a tiny model; with files in place of the Hub's sets."""
    settings = Settings(model="m", behavior=name)
    assert {scorer.plugin for scorer in settings.scorers} <= set(SCORERS.values())
    options: list[str] = []
    sets = {f"{kind}-prompts": getattr(settings, f"{kind}_prompts") for kind in ("good", "bad")}
    sets |= {
        f"{kind}-evaluation-prompts": getattr(settings, f"{kind}_evaluation_prompts")
        for kind in ("good", "bad")
    }
    if settings.protected_prompts is not None:
        sets["protected-prompts"] = settings.protected_prompts
    for key, where in sets.items():
        split = "train[50:60]" if "evaluation" in key else "train[:8]"
        if key.startswith("protected"):
            split = "train[8:16]"  # here perhaps of the same file as the bad ones
        options += [f"--{key}.split", split]
        if where.dataset in HUB:
            options += [f"--{key}.dataset", str(HUB[where.dataset])]
    for scorer, given in settings.scorer.items():
        place = HUB.get(given["prompts"]["dataset"], given["prompts"]["dataset"])
        own = json.dumps({"dataset": str(place), "split": "train[30:36]"})
        options += [f"--scorer.{scorer}.prompts", own]
    model = tiny.folder(tmp_path / "tiny")
    options += ["--n-trials", "2", "--n-startup-trials", "2", "--max-response-length", "6"]
    options += ["--search", "tpe", "--batch-size", "8", "--seed", "1", "--model-action", "none"]
    options += ["--force"]  # a random model tells no jokes
    result = CliRunner().invoke(heretic, [str(model), "--behavior", name, *options])
    assert result.exit_code == 0, result.output
    assert f"Behavior: {name}" in result.output
    (front,) = Path("checkpoints").glob("*/front.json")
    for trial in json.loads(front.read_text()):
        assert list(trial["scores"]) == [scorer.name for scorer in settings.scorers]
