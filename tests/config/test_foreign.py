"""Files of heretic-llm, another project: every key is handled, and means here what it meant."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.foreign import FILES, SET_KEYS, VALUES, document

from heretic.config import Settings, load_settings
from heretic.config.foreign.page import migration_page
from heretic.config.foreign.rules import JUDGE, SETTINGS, Rule, rules_of
from heretic.config.foreign.translate import Translation, is_foreign, translate
from heretic.config.migrate import as_toml, migrate
from heretic.config.nested import merged
from heretic.config.reference import default_toml
from heretic.config.schema import known_paths
from heretic.config.sources import read_config
from heretic.config.tables import each_of
from heretic.errors import HereticError, SettingsError
from heretic.prompts import load
from heretic.scorers import load_scorers

ROOT = Path(__file__).parents[2]
KEYS = sorted({key for keys in FILES.values() for key in keys})


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without configuration, and no variables of ours."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("HERETIC_")]:
        monkeypatch.delenv(name)


def translated(tables: dict[str, Any], name: str = "config.toml") -> Translation:
    return translate(tables, Path(name))


def toml(tables: dict[str, Any], name: str = "config.toml") -> Path:
    import tomlkit

    Path(name).write_text(tomlkit.dumps(tables), encoding="utf-8")
    return Path(name)


def quiet(remark: str) -> None:
    """Let a remark pass."""


class TestRules:
    @pytest.mark.parametrize("file", FILES)
    def test_every_key_of_their_files_has_a_rule(self, file: str):
        rules = rules_of("judge" if file.startswith("judge") else "settings")
        for key in FILES[file]:
            table, _, last = key.rpartition(".")
            assert key in rules or (table in rules and last in SET_KEYS), key

    def test_every_rule_is_of_a_file_or_of_another_witness(self):
        """Keys that no settings file had; where they are known from says docs/migrate.md."""
        seen = {key for keys in FILES.values() for key in keys}
        seen |= {key.rpartition(".")[0] for key in seen}
        assert {rule.key for rule in (*SETTINGS, *JUDGE)} - seen == {
            "evaluate_model",  # its README
            "response_prefix",  # settings in its checkpoints
            "trust_remote_code",
            "chain_of_thought_blocks",
        }

    @pytest.mark.parametrize("rule", [*SETTINGS, *JUDGE], ids=lambda rule: str(rule.key))
    def test_what_a_rule_says_fits_together(self, rule: Rule):
        settings = {".".join(path) for path in known_paths()}
        assert not rule.to or rule.to in settings or rule.to.startswith("scorer.refusals")
        assert bool(rule.to) == (rule.handling in ("same", "renamed", "converted"))
        if rule.handling in ("same", "renamed"):
            assert (rule.to == rule.key) == (rule.handling == "same")
        if not rule.to:
            assert rule.why, "what is not taken needs a reason"
        for text in (rule.why, rule.note):
            assert not re.search(r"\.$|\n|\|", text)

    def test_there_is_one_rule_for_each_key(self):
        assert len(rules_of("settings")) == len(SETTINGS)
        assert len(rules_of("judge")) == len(JUDGE)

    def test_the_page_has_a_row_for_each_and_is_the_one_in_the_repository(self):
        page = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
        assert page == migration_page()
        rows = re.findall(r"^\| `([^`]+)` \| (?:1\.x|2\.x|judge)", page, re.MULTILINE)
        assert rows == [rule.key for rule in (*SETTINGS, *JUDGE)]

    def test_what_is_same_is_as_it_was(self):
        for rule in SETTINGS:
            if rule.handling == "same":
                found = translated({rule.key: VALUES[rule.key]})
                assert found.values == {rule.key: VALUES[rule.key]}, rule.key
                assert [entry.handling for entry in found.entries] == ["same"]


class TestEveryFile:
    @pytest.mark.parametrize("file", FILES)
    def test_what_is_written_loads_as_what_is_read_as_it_is(self, file: str):
        source = toml(document(*FILES[file]), "judge.toml" if "judge" in file else "theirs.toml")
        found = migrate(source)
        Path("ours.toml").write_text(as_toml(found, source))
        ours = load_settings({"model": "org/m"}, Path("ours.toml"))
        assert tomllib.loads(Path("ours.toml").read_text()) == found.values
        if found.values and is_foreign(document(*FILES[file]), source):
            said: list[str] = []
            assert load_settings({"model": "org/m"}, source, tell=said.append) == ours
            assert "another project" in said[0]
        handled = {entry.key for entry in found.entries}
        for key in document(*FILES[file]):
            assert any(name.partition(".")[0] == key for name in handled), key

    @pytest.mark.parametrize("file", FILES)
    def test_no_value_is_lost_without_a_word(self, file: str):
        found = translated(document(*FILES[file]))
        for entry in found.entries:
            assert entry.to or entry.text, entry
            assert entry.handling != "unknown"

    def test_the_most_common_ones_have_all_their_prompts(self):
        keys = FILES["config.default.toml, 2.x (a copy of master, 66612f86)"]
        values = translated(document(*keys)).values
        assert [part["dataset"] for part in values["good_prompts"]] == ["org/a", "org/b"]
        assert values["bad_evaluation_prompts"]["dataset"] == "org/a"
        assert values["row_normalization"] == "none"
        assert values["refusal_markers"] == ["eldoria", "velvet"]
        assert values["scorers"][0]["name"] == "responses_with_slop"


class TestMeaning:
    def test_markers_are_found_in_replies_as_they_were(self):
        values = translated({"refusal_markers": ["Eldoria", "I Can’t", "**", "why  did"]}).values
        assert values["refusal_markers"] == ["eldoria", "i can't", "why did"]
        scorer, _ = load_scorers(Settings.restore({"model": "m", **values}))
        assert scorer.shows("In ELDORIA all is well.")  # type: ignore[attr-defined]
        assert scorer.shows("Well, I can’t.")  # type: ignore[attr-defined]
        assert not scorer.shows("**Bold** words.")  # type: ignore[attr-defined]

    def test_texts_before_and_after_prompts_stand_apart_from_them(self):
        Path("p.txt").write_text("One.\nTwo.\n")
        for prefix, begins in (("Ask:", "Ask: One."), ("Ask:\n", "Ask:\nOne."), ("", "One.")):
            table = {"dataset": "p.txt", "prefix": prefix, "suffix": "Please."}
            values = translated({"bad_prompts": table}).values
            prompts = load(Settings.restore({"model": "m", **values}).bad_prompts)
            assert prompts[0].user == f"{begins} Please."

    def test_a_file_of_lines_is_read_as_a_whole_and_has_no_column(self):
        Path("p.txt").write_text("\n".join(f"line {i}" for i in range(500)))
        found = translated({"good_prompts": {"dataset": "p.txt", "column": "prompt"}})
        assert len(load(Settings.restore({"model": "m", **found.values}).good_prompts)) == 500
        assert "`column` is left out" in found.entries[0].text

    def test_a_reasoning_block_is_its_beginning_and_its_end(self):
        pairs = [["<think>", "</think>"], ["<a>", "<a></a>"]]
        values = translated({"chain_of_thought_blocks": pairs}).values
        assert values["chain_of_thought_skips"] == [
            ["<think>", "<think></think>"],
            ["<a>", "<a></a>"],
        ]

    @pytest.mark.parametrize(
        ("key", "value", "ours"),
        [
            ("max_shard_size", 5_000_000_000, "5000000KB"),
            ("max_shard_size", 1500, "1.5KB"),
            ("max_shard_size", "2GB", "2GB"),
            ("trial_index", 0, 0),
            ("checkpoint_action", "restart", "restart"),
            ("response_prefix", "", ""),
        ],
    )
    def test_values_with_another_form(self, key: str, value: Any, ours: Any):
        assert translated({key: value}).values == {key: ours}
        assert Settings.restore({"model": "m", key: ours}).model == "m"

    @pytest.mark.parametrize(
        ("key", "value", "why"),
        [
            ("trial_index", 3, "another front"),
            ("checkpoint_action", "continue", "is an error where no such run exists"),
            ("response_prefix", "auto", "to find a prefix"),
            ("quantization", "exl3", "means nothing here"),
            ("export_strategy", "gguf", "means nothing here"),
            ("chain_of_thought_blocks", ["<think>"], "not a list of pairs"),
            ("refusal_markers", ["*"], "no text is left"),
            ("good_prompts", "org/a", "neither a table"),
        ],
    )
    def test_values_without_a_counterpart_are_left_out(self, key: str, value: Any, why: str):
        found = translated({key: value})
        assert not found.values
        (entry,) = found.entries
        assert entry.handling == "left"
        assert why in entry.text

    def test_of_two_places_for_one_setting_the_second_is_left_out_unless_equal(self):
        both = document(
            "scorer.KeywordRate.prompts.dataset", "scorer.RefusalDetector.prompts.split"
        )
        path = "heretic.scorers.refusal_detector.RefusalDetector"
        both["scorers"] = [*VALUES["scorers"], {"plugin": path}]
        assert not translated(both).of("left")
        both["scorer"]["RefusalDetector"]["prompts"] = {"dataset": "org/other"}
        (entry,) = translated(both).of("left")
        assert entry.key == "scorer.RefusalDetector.prompts"
        assert "bad_evaluation_prompts comes from scorer.KeywordRate.prompts" in entry.text


class TestPlugins:
    def scorers(self, *paths: str, **more: Any) -> Translation:
        return translated({"scorers": [{"plugin": path} for path in paths], **more})

    KEYWORD, KL = (one["plugin"] for one in VALUES["scorers"])
    REFUSAL = "heretic.scorers.refusal_detector.RefusalDetector"
    BENCHMARK = "heretic.scorers.benchmark_score.BenchmarkScore"

    def names(self, found: Translation) -> list[str]:
        return [one["plugin"] for one in found.values.get("scorers", ())]

    def test_a_file_with_a_classifier_is_judged_by_rules_and_it_is_said(self):
        found = self.scorers(self.REFUSAL, self.KL)
        assert self.names(found) == ["refusal", "kl_divergence"]
        assert "classifier_judge" in found.entries[0].text

    def test_two_ways_to_count_refusals_have_two_names(self):
        found = self.scorers(self.KEYWORD, self.REFUSAL, self.KL)
        names = [one["name"] for one in found.values["scorers"]]
        assert names == ["refusals", "refusal", "kl_divergence"]
        assert len(load_scorers(Settings.restore({"model": "m", **found.values}))) == 3

    def test_damage_is_measured_where_a_benchmark_did_it(self):
        found = self.scorers(self.KEYWORD, self.BENCHMARK)
        assert self.names(found) == ["keyword", "kl_divergence"]
        assert "`kl_divergence` is added" in found.entries[0].text

    def test_without_a_scorer_of_the_behaviour_the_default_stays(self):
        found = self.scorers(self.KL, self.BENCHMARK)
        assert not found.values
        assert "the default stays" in found.entries[0].text

    def test_plugins_of_others_are_told_and_not_carried_over(self):
        found = self.scorers(self.KEYWORD, "my_scorers.py:Mine", "evil.module.Class")
        assert self.names(found) == ["keyword", "kl_divergence"]
        assert "my_scorers.py:Mine runs code of others" in found.entries[0].text
        (entry,) = translated({"modifiers": [{"plugin": "my.Modifier"}]}).entries
        assert (entry.handling, entry.to) == ("left", "")

    def test_the_first_of_several_instances_is_taken_with_its_own_options(self):
        entries = [{"plugin": self.KEYWORD, "instance_name": name} for name in ("small", "tiny")]
        keyword = {"keyword_markers": ["a"], "prompts": {"dataset": "org/a", "split": "test[:9]"}}
        tables = {"KeywordRate": keyword, "KeywordRate_small": {"prompts": {"split": "test[:3]"}},
                  "KeywordRate_tiny": {"prompts": {"split": "test[:1]"}}}  # fmt: skip
        found = translated({"scorers": entries, "scorer": tables})
        assert found.values["bad_evaluation_prompts"] == {"dataset": "org/a", "split": "test[:3]"}
        said = " ".join(entry.text for entry in found.entries)
        assert "a second KeywordRate is left out" in said
        assert "scorer.KeywordRate_tiny" in {entry.key for entry in found.of("left")}

    def test_the_modifier_in_use_decides(self):
        tables = {"ARA": {"good_prompts": {"dataset": "org/ara"}},
                  "Abliteration": {"good_prompts": {"dataset": "org/one"}}}  # fmt: skip
        for path, dataset in (("ara.ARA", "org/ara"), ("abliteration.Abliteration", "org/one")):
            modifiers = [{"plugin": f"heretic.modifiers.{path}"}]
            found = translated({"modifiers": modifiers, "modifier": tables})
            assert found.values["good_prompts"]["dataset"] == dataset
        alone = translated({"modifier": {"Abliteration": tables["Abliteration"]}})
        assert alone.values["good_prompts"]["dataset"] == "org/one"

    def test_a_file_that_counts_by_texts_goes_on_counting_by_them(self):
        for tables in (
            {"refusal_markers": ["a"]},
            {"scorer": {"KeywordRate": {"keyword_markers": ["a"]}}},
        ):
            found = translated(tables)
            assert self.names(found) == ["keyword", "kl_divergence"]
            assert any("this tool's own detector" in entry.text for entry in found.entries)


class TestConsent:
    def test_it_is_told_and_never_carried_over(self):
        found = translated({"trust_remote_code": True, "n_trials": 3})
        assert found.values == {"n_trials": 3}
        (entry,) = found.of("consent")
        assert "--trust-remote-code" in entry.text
        file = toml({"trust_remote_code": True, "print_responses": True, "n_trials": 3})
        said: list[str] = []
        assert not load_settings({"model": "m"}, file, tell=said.append).trust_remote_code
        assert any("--trust-remote-code" in line for line in said)

    def test_neither_are_consents_that_only_this_tool_knows(self):
        found = translated({"allow_pickle": True, "benchmark_path": "x", "n_trials": 3})
        assert found.values == {"n_trials": 3}

    def test_a_judge_gets_no_address_and_no_key(self):
        keys = next(keys for file, keys in FILES.items() if file.startswith("judge"))
        found = translated(document(*keys), "judge.toml")
        text = as_toml(found, Path("judge.toml"))
        assert "8317" not in text
        said = json.dumps([(entry.key, entry.text) for entry in found.entries])
        assert VALUES["api_key"] not in text + said
        assert {entry.key for entry in found.of("consent")} == {"api_base", "api_key"}
        options = {"model": "first", "concurrency": 6, "timeout": 90, "max_retries": 3}
        prices = {"price_in": 0.15, "price_out": 0.6}
        assert found.values["scorer"] == {"refusals": {**options, **prices}}


class TestRecognition:
    @pytest.mark.parametrize(
        "tables",
        [
            {"print_responses": True},
            {"kl_divergence_target": 0.1},
            {"modifier": {"ARA": {}}},
            {"scorer": {"KLDivergence": {"prompts": {"dataset": "a"}}}},
            {"scorers": VALUES["scorers"]},
            {"api_base": "http://localhost/v1"},
            {"models": ["a"], "timeout": 3},
        ],
        ids=str,
    )
    def test_by_a_key_that_only_they_have(self, tables: dict[str, Any]):
        assert is_foreign(tables, Path("config.toml"))

    @pytest.mark.parametrize(
        "tables",
        [
            {},
            {"n_trials": 3, "refusal_markers": ["a"]},
            {"n_trails": 3},
            {"timeout": 3},
            {"models": "org/m", "n_trials": 3},
            {"api_base": "http://localhost/v1", "n_trials": 3},
            {"print_responses": True, "search": "tpe"},
            {
                "scorers": [{"plugin": "keyword", "name": "KeywordRate"}],
                "scorer": {"KeywordRate": {}},
            },
            {"scorers": [{"plugin": "heretic.scorers.keyword:KeywordRefusals"}]},
        ],
        ids=str,
    )
    def test_all_else_is_ours(self, tables: dict[str, Any]):
        assert not is_foreign(tables, Path("config.toml"))

    def test_our_own_default_file_is_ours(self):
        assert not is_foreign(tomllib.loads(default_toml()), Path("config.toml"))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("n_trails = 3", r"Unknown setting n_trails in config\.toml\. Did you mean n_trials"),
            ("timeout = 3", r"Unknown setting timeout in config\.toml\. .* `heretic config`"),
            (
                'search = "tpe"\nprint_responses = true',
                r"print_responses in config\.toml: it is one of heretic-llm.* Leave it out",
            ),
            (
                "print_responses = true\nn_trails = 3",
                r"Unknown setting n_trails in config\.toml\. Did you mean n_trials",
            ),
            ("print_responses = true", r"Nothing in config\.toml could be taken"),
            ("print_responses = true\nn_trials = 'x'", r"Setting n_trials in config\.toml"),
        ],
    )
    def test_errors_stay_errors(self, text: str, said: str):
        Path("config.toml").write_text(text + "\n")
        with pytest.raises(SettingsError, match=said):
            load_settings({"model": "m"}, tell=quiet)

    def test_a_program_is_warned(self):
        Path("config.toml").write_text("print_responses = true\nn_trials = 3\n")
        with pytest.warns(UserWarning, match="settings of heretic-llm 1.x"):
            assert Settings(model="m").n_trials == 3

    def test_markers_that_nothing_reads_are_told(self):
        file = toml({"refusal_markers": ["Eldoria"], "n_trials": 3})
        said: list[str] = []
        load_settings({"model": "m"}, file, tell=said.append)
        (line,) = said
        assert "`heretic migrate FILE` converts it" in line
        said.clear()
        load_settings({"model": "m", "scorers": [{"plugin": "keyword"}]}, file, tell=said.append)
        assert said == []


class TestReproductionFiles:
    FILE = Path("reproduce.json")

    def write(self, data: Any) -> Path:
        self.FILE.write_text(json.dumps(data))
        return self.FILE

    def test_its_settings_are_taken_and_nulls_are_unset(self):
        prompts = {"dataset": "org/a", "prefix": None, "split": "train[:3]"}
        given: dict[str, Any] = {"model": "org/m", "n_trials": 9, "good_prompts": prompts}
        settings = {**given, "max_memory": None, "seed": None}
        file = self.write({"seed": 4, "settings": settings, "weights_sha256": {"a": "b"}})
        loaded = load_settings({}, file, tell=quiet)
        assert (loaded.model, loaded.n_trials, loaded.seed) == ("org/m", 9, 4)
        (part,) = each_of(loaded.good_prompts)
        assert part.split == "train[:3]"
        assert migrate(file).of("left")[0].key == "weights_sha256"

    def test_one_of_ours_is_for_another_command(self):
        file = self.write({"schema_version": 2, "plan": {}, "settings": {}})
        with pytest.raises(SettingsError, match=r"of this tool\. `heretic reproduce"):
            read_config(file)

    @pytest.mark.parametrize("data", [[], 3, {}, {"settings": 3}])
    def test_what_holds_nothing_is_an_error(self, data: Any):
        with pytest.raises(SettingsError):
            read_config(self.write(data))


class TestMigrate:
    def test_values_that_are_not_valid_are_left_out_with_the_reason(self):
        found = migrate(
            toml({"n_trials": -3, "print_responses": True, "seed": "x", "dtypes": ["auto"]})
        )
        assert found.values == {"dtypes": ["auto"]}
        reasons = {entry.key: entry.text for entry in found.of("left")}
        assert "greater than or equal to 1" in reasons["n_trials"]
        assert "integer" in reasons["seed"]

    def test_two_scores_of_one_name_are_given_up(self):
        tables = document("scorers", "scorer.KeywordRate.score_name", "n_trials")
        tables["scorer"]["KeywordRate"]["score_name"] = "KL divergence"
        found = migrate(toml(tables))
        assert found.values == {"n_trials": 7}

    def test_options_of_our_scorers_go_along_without_addresses(self):
        scorers = [{"plugin": "llm_judge", "name": "judged"}, {"plugin": "my.Mine"}]
        options = {"model": "x", "endpoint": "http://localhost/v1", "api_key_env": "KEY"}
        tables = {"judged": options, "Mine": {"a": 1}}
        found = migrate(toml({"scorers": scorers, "scorer": tables, "print_responses": True}))
        assert found.values["scorer"] == {"judged": {"model": "x"}}
        assert {entry.key for entry in found.of("consent")} == {
            "scorer.judged.endpoint",
            "scorer.judged.api_key_env",
        }
        assert "scorer.Mine" in {entry.key for entry in found.of("left")}

    def test_settings_of_ours_go_along(self):
        found = migrate(toml({"search": "tpe", "print_responses": True}))
        assert found.values == {"search": "tpe"}
        assert found.of("ours")[0].key == "search"

    @given(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.text(max_size=4)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from([*VALUES, "plugin", "KeywordRate", "dataset"]),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=12,
        ),
        st.sampled_from([key.partition(".")[0] for key in KEYS]),
    )
    def test_whatever_a_file_holds_what_is_written_loads(self, value: Any, key: str):
        tables = merged(document("n_trials", "scorer.KeywordRate.keyword_markers"), {key: value})
        Path("theirs.json").write_text(json.dumps({"settings": tables}))
        try:
            found = migrate(Path("theirs.json"))
        except HereticError:
            return
        Path("ours.toml").write_text(as_toml(found, Path("theirs.json")), encoding="utf-8")
        if found.values:
            load_settings({"model": "m"}, Path("ours.toml"), tell=quiet)
