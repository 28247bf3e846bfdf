"""Settings: every source, their order, strictness, and the files generated from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from tests.support.data_sets import only

from heretic.config import DatasetSpecification, Settings, load_settings
from heretic.config import reference as config_docs
from heretic.config.declaration import AS_BEFORE, setting
from heretic.config.fields.all import SettingsFields
from heretic.config.schema import (
    SettingsLayer,
    check_keys,
    known_paths,
    settings_of,
    values_as_before,
)
from heretic.config.sources import ARGUMENTS
from heretic.config.tables import ScorerSpecification
from heretic.errors import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without configuration, and no variables of ours."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("HERETIC_")]:
        monkeypatch.delenv(name)


def test_defaults_are_those_of_the_specification():
    settings = Settings(model="org/model")
    assert settings.n_trials == 200
    assert settings.n_startup_trials == 60
    assert settings.seed is None
    assert settings.dtypes == ("auto", "float16", "bfloat16", "float32")
    assert settings.row_normalization == "full"
    assert settings.orthogonalize_direction is True
    assert settings.winsorization_quantile == 1.0
    assert settings.max_response_length == 100
    assert only(settings.good_prompts).dataset == "mlabonne/harmless_alpaca"
    assert only(settings.bad_evaluation_prompts).split == "test[:100]"
    assert len(settings.refusal_markers) == 33
    assert [scorer.name for scorer in settings.scorers] == ["refusals", "kl_divergence"]
    assert settings.trust_remote_code is False


def test_every_field_has_a_meaning():
    for model in (SettingsFields, DatasetSpecification):
        for name, info in model.model_fields.items():
            assert info.description, name


def test_a_program_never_reads_the_command_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["program", "--n-trials", "3", "--nonsense"])
    assert Settings(model="m", n_trials=100).n_trials == 100


def test_frozen():
    settings = Settings(model="m")
    with pytest.raises(Exception, match="frozen"):
        settings.n_trials = 3
    with pytest.raises(Exception, match="frozen"):
        only(settings.good_prompts).split = "train"


LAYERS = ("arguments", "command line", "environment", "dotenv", "secrets", "toml")


@pytest.mark.parametrize("highest", range(len(LAYERS)))
def test_order_of_sources(highest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the layers from `highest` down all set, `highest` wins."""
    number = {name: 10 + i for i, name in enumerate(LAYERS)}
    present = set(LAYERS[highest:])
    if "toml" in present:
        Path("config.toml").write_text(f"n_trials = {number['toml']}\n")
    if "secrets" in present:
        folder = tmp_path / "secrets"
        folder.mkdir()
        (folder / "heretic_n_trials").write_text(f"{number['secrets']}\n")
        (folder / "other").write_text("ours is none of this")
        monkeypatch.setenv("HERETIC_SECRETS_DIR", str(folder))
    if "dotenv" in present:
        Path(".env").write_text(f"HERETIC_N_TRIALS={number['dotenv']}\n")
    if "environment" in present:
        monkeypatch.setenv("HERETIC_N_TRIALS", str(number["environment"]))
    if "arguments" in present:
        assert Settings(model="m", n_trials=number["arguments"]).n_trials == 10
        return
    command_line = {"n_trials": str(number["command line"])} if highest == 1 else {}
    settings = load_settings({"model": "m", **command_line})
    assert settings.n_trials == number[LAYERS[highest]]


def test_layers_merge_inside_tables(monkeypatch: pytest.MonkeyPatch):
    Path("config.toml").write_text('[good_prompts]\nsplit = "a"\ncolumn = "b"\nprefix = "c"\n')
    monkeypatch.setenv("HERETIC_GOOD_PROMPTS__SPLIT", "train[:7]")
    settings = load_settings({"model": "m", "good_prompts": {"column": "question"}})
    specification = only(settings.good_prompts)
    assert (specification.split, specification.column, specification.prefix) == (
        "train[:7]",
        "question",
        "c",
    )
    assert specification.dataset == "mlabonne/harmless_alpaca"


@pytest.mark.parametrize("place", ["command line", "environment", "toml"])
def test_a_prompt_set_that_may_be_unset(place: str, monkeypatch: pytest.MonkeyPatch):
    """It is a table like the others, and what is wrong with a key of it is said as there."""
    command_line: dict[str, Any] = {"model": "m"}
    assert load_settings(command_line).good_held_out_prompts is None
    if place == "command line":
        command_line["good_held_out_prompts"] = {"dataset": "p.txt", "split": "[:3]"}
    elif place == "environment":
        monkeypatch.setenv("HERETIC_GOOD_HELD_OUT_PROMPTS__DATASET", "p.txt")
        monkeypatch.setenv("HERETIC_GOOD_HELD_OUT_PROMPTS__SPLIT", "[:3]")
    else:
        text = '[good_held_out_prompts]\ndataset = "p.txt"\nsplit = "[:3]"\n'
        Path("config.toml").write_text(text)
    expected = DatasetSpecification(dataset="p.txt", split="[:3]")
    assert load_settings(command_line).good_held_out_prompts == expected
    assert load_settings(command_line).bad_held_out_prompts is None
    wrong = {"bad_held_out_prompts": {"spilt": "[:3]"}}
    with pytest.raises(SettingsError, match=r"bad-held-out-prompts\.split"):
        load_settings({**command_line, **wrong})


def test_what_is_not_scored_in_the_search_is_not_in_its_fingerprint():
    base = Settings.restore({"model": "m"})
    held_out = {"dataset": "p.txt", "split": "[:3]"}
    changed = base.replaced(
        good_held_out_prompts=held_out, bad_held_out_prompts=held_out, patience=9
    )
    assert changed.fingerprint() == base.fingerprint()
    for change in ({"search": "gp"}, {"max_rank": 2}, {"plans_at_once": 3}):
        assert base.replaced(**change).fingerprint() != base.fingerprint()


def test_a_whole_specification_as_an_argument():
    specification = DatasetSpecification(dataset="p.txt", split="[:3]")
    assert Settings(model="m", good_prompts=specification).good_prompts == specification


def test_config_file_in_place_of_the_one_in_the_working_directory(tmp_path: Path):
    Path("config.toml").write_text("n_trials = 5\nseed = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("n_trials = 6\n")
    settings = load_settings({"model": "m"}, other)
    assert settings.n_trials == 6
    assert settings.seed is None


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "does not exist"), ("n_trials = = 3", "not valid TOML"), ("a = 1\n\nb", "Expected")],
)
def test_a_config_file_that_cannot_be_read(tmp_path: Path, text: str | None, said: str):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings({"model": "m"}, path)


def test_unknown_key_in_toml():
    Path("config.toml").write_text("n_trails = 5\n")
    with pytest.raises(SettingsError, match=r"n_trails in config\.toml\. Did you mean n_trials\?"):
        load_settings({"model": "m"})


def test_unknown_key_in_a_table_of_toml():
    Path("config.toml").write_text('[good_prompts]\nsplitt = "x"\n')
    with pytest.raises(SettingsError, match=r"good_prompts\.splitt .* good_prompts\.split\?"):
        Settings(model="m")


def test_unknown_key_in_a_list_of_tables():
    Path("config.toml").write_text('[[scorers]]\nplugn = "a:B"\n')
    with pytest.raises(SettingsError, match=r"scorers\.plugn in config\.toml.*scorers\.plugin"):
        Settings(model="m")


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("HERETIC_N_TRAILS", "HERETIC_N_TRIALS"),
        ("HERETIC_GOOD_PROMPTS__SPLT", "HERETIC_GOOD_PROMPTS__SPLIT"),
        ("HERETIC_GOOD_PROMPTS_SPLIT", "HERETIC_GOOD_PROMPTS__SPLIT"),
        ("HERETIC_SCORERS__0__NAME", "HERETIC_SCORERS__NAME"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_unknown_variable(variable: str, nearest: str, place: str, monkeypatch: pytest.MonkeyPatch):
    if place == "environment":
        monkeypatch.setenv(variable, "1")
    else:
        Path(".env").write_text(f"{variable}=1\n")
    with pytest.raises(SettingsError, match=f"{variable} in (the )?{place}.*{nearest}"):
        Settings(model="m")


def test_unknown_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "heretic_modell").write_text("x")
    monkeypatch.setenv("HERETIC_SECRETS_DIR", str(tmp_path))
    with pytest.raises(
        SettingsError, match=r"HERETIC_MODELL in the secrets folder.*HERETIC_MODEL\?"
    ):
        Settings()


def test_unknown_argument_and_command_line_key():
    with pytest.raises(SettingsError, match=r"n_trails in the arguments.*n_trials\?"):
        Settings(model="m", n_trails=1)
    with pytest.raises(SettingsError, match=r"--n-trails on the command line.*--n-trials\?"):
        load_settings({"n_trails": "1"})


def test_other_variables_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEL", "wrong")
    monkeypatch.setenv("HERETICAL_N_TRIALS", "wrong")
    Path(".env").write_text("N_TRIALS=wrong\nUNRELATED=1\n")
    assert Settings(model="m").n_trials == 200


@pytest.mark.parametrize(
    ("command_line", "said"),
    [
        ({"n_trials": "many"}, r"Setting --n-trials on the command line \('many'\): .*integer"),
        ({"n_trials": "0"}, "greater than or equal to 1"),
        ({"row_normalization": "ful"}, "'none', 'pre' or 'full'"),
        ({"good_prompts": {"dataset": 3}}, r"--good-prompts\.dataset on the command line"),
        ({"winsorization_quantile": "1.5"}, "less than or equal to 1"),
        ({"scorers": [{"plugin": "nowhere"}]}, "module:Class"),
        ({"scorers": '[{"plugin"'}, "JSON list"),
        ({"scorer": {"nobody": {}}}, "belongs to no scorer"),
        ({"scorers": [{"plugin": "a:B"}, {"plugin": "c:B"}]}, "two scorers are named b"),
        ({"dtypes": []}, "at least 1"),
        ({"n_trials": "1" * 400}, "n-trials"),
        ({"n_trials": 2**31}, "less than or equal to 2147483647"),
        ({"seed": "18446744073709551616"}, "less than or equal to 9223372036854775807"),
        ({"trial_index": 10**30}, "trial-index"),
        ({"kl_divergence_scale": "nan"}, "finite"),
        ({"kl_divergence_scale": "inf"}, "finite"),
        ({"winsorization_quantile": float("nan")}, "finite"),
        ({"scorers": "[" * 5000}, "nested too deeply"),
        ({"chat_template_kwargs": '{"a": ' * 5000}, "nested too deeply"),
        ({"device_map": "{x"}, "JSON table"),
    ],
)
def test_malformed_values_are_said_in_one_line(command_line: dict[str, object], said: str):
    with pytest.raises(SettingsError, match=said) as caught:
        load_settings({"model": "m", **command_line})
    assert "\n" not in str(caught.value)


def test_a_malformed_value_names_the_place_it_stood(monkeypatch: pytest.MonkeyPatch):
    Path("config.toml").write_text('seed = "x"\n')
    with pytest.raises(SettingsError, match=r"seed in config\.toml \('x'\)"):
        Settings(model="m")
    monkeypatch.setenv("HERETIC_SEED", "-4")
    with pytest.raises(SettingsError, match=r"HERETIC_SEED in the environment \('-4'\)"):
        Settings(model="m")


def test_missing_model():
    with pytest.raises(SettingsError, match=r"No model given\. Usage: heretic MODEL"):
        load_settings({})
    assert load_settings({}, require_model=False).model == ""


def test_lists_and_tables_in_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HERETIC_DTYPES", '["float32", "auto"]')
    monkeypatch.setenv("HERETIC_REFUSAL_MARKERS", "sorry")
    monkeypatch.setenv("HERETIC_SCORER__REFUSALS__LIMIT", "3")
    monkeypatch.setenv("HERETIC_SCORER__REFUSALS__WORDS", '["a"]')
    monkeypatch.setenv("HERETIC_MAX_MEMORY", '{"0": "20GB", "cpu": "4GB"}')
    monkeypatch.setenv("HERETIC_BAD_PROMPTS", '{"dataset": "b.txt"}')
    settings = Settings(model="m")
    assert settings.dtypes == ("float32", "auto")
    assert settings.refusal_markers == ("sorry",)
    assert settings.scorer == {"refusals": {"limit": 3, "words": ["a"]}}
    assert settings.max_memory == {0: "20GB", "cpu": "4GB"}
    assert only(settings.bad_prompts).dataset == "b.txt"


def test_empty_text_unsets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HERETIC_SYSTEM_PROMPT", "")
    monkeypatch.setenv("HERETIC_SEED", "")
    monkeypatch.setenv("HERETIC_MODEL_ACTION", "")
    settings = Settings(model="m", seed=1)
    assert settings.system_prompt is None
    assert settings.seed == 1
    assert settings.model_action is None


def test_restore_reads_no_other_source(monkeypatch: pytest.MonkeyPatch):
    settings = Settings(
        model="m",
        n_trials=7,
        save_directory="out",
        max_memory={0: "1GB"},
        good_prompts={"split": "train[:3]"},
    )
    data = json.loads(json.dumps(settings.to_dict()))
    monkeypatch.setenv("HERETIC_SEED", "5")
    Path("config.toml").write_text("kl_divergence_scale = 3.0\n")
    assert Settings.restore(data) == settings
    assert settings.replaced(n_trials=8).n_trials == 8
    assert settings.replaced(n_trials=8).seed is None
    with pytest.raises(SettingsError, match="n_trails"):
        settings.replaced(n_trails=8)


def test_fingerprint_holds_what_changes_scores():
    settings = Settings(model="m")
    fingerprint = settings.fingerprint()
    json.dumps(fingerprint)
    same = {
        "n_trials": 3,
        "max_refusals": 3,
        "time_limit": "30m",
        "seed": 4,
        "batch_size": 5,
        "save_directory": "x",
        "model_action": "save",
        "study_checkpoint_dir": "y",
        "residual_plot_title": "z",
        "good_prompts": {"dataset": "other"},  # their words count, which the pipeline adds
        "kl_divergence_scale": 2.0,
    }
    for name, value in same.items():
        assert settings.replaced(**{name: value}).fingerprint() == fingerprint, name
    different = {
        "model": "n",
        "model_commit": "c",
        "dtypes": ["float32"],
        "system_prompt": "Be brief.",
        "max_response_length": 4,
        "row_normalization": "none",
        "direction_method": "median",
        "refusal_markers": ["no"],
        "n_startup_trials": 3,
        "scorer": {"refusals": {"x": 1}},
    }
    for name, value in different.items():
        assert settings.replaced(**{name: value}).fingerprint() != fingerprint, name


def test_fingerprint_knows_a_folder_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text("{}")
    monkeypatch.chdir(tmp_path)
    there = Settings(model=str(tmp_path / "model")).fingerprint()
    assert Settings(model="model").fingerprint() == there
    assert Settings(model="./model", model_commit="main").fingerprint() == there
    assert str(tmp_path) not in json.dumps(there)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert Settings(model="moved").fingerprint() == there
    (tmp_path / "moved" / "config.json").write_text("{ }")
    assert Settings(model="moved").fingerprint() != there


def test_fingerprint_knows_a_scorer_file_by_its_bytes(tmp_path: Path):
    def fingerprint(path: Path) -> object:
        scorers = [{"plugin": f"{path}:Length", "name": "length"}]
        return Settings(model="m", scorers=scorers).fingerprint()

    plugin, other = tmp_path / "a.py", tmp_path / "b.py"
    plugin.write_text("x = 1")
    other.write_text("x = 1")
    before = fingerprint(plugin)
    assert fingerprint(other) == before
    plugin.write_text("x = 2")
    assert fingerprint(plugin) != before


@given(st.sampled_from(sorted({path for path in known_paths() if len(path) == 1})), st.data())
def test_a_slip_of_the_pen_is_never_accepted(path: tuple[str, ...], data: st.DataObject):
    """Whatever letter is left out, the key is refused, and some setting is named."""
    name = path[0]
    position = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:position] + name[position + 1 :]
    if wrong in SettingsFields.model_fields:
        return
    with pytest.raises(SettingsError, match=r"Did you mean|nearest known"):
        check_keys({wrong: 1}, ARGUMENTS)


def test_generated_files_are_up_to_date():
    assert config_docs.outdated(ROOT) == [], "run python -m heretic.config.reference --write"


def test_drift_is_noticed(tmp_path: Path):
    config_docs.write(tmp_path)
    assert config_docs.outdated(tmp_path) == []
    (tmp_path / "config.default.toml").write_text("n_trials = 3\n")
    assert config_docs.outdated(tmp_path) == [tmp_path / "config.default.toml"]


def test_default_toml_holds_every_default(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text(config_docs.default_toml())
    assert load_settings({"model": "m"}, path) == Settings.restore({"model": "m"})


def test_default_toml_shows_every_setting_with_its_meaning(tmp_path: Path):
    text = config_docs.default_toml()
    uncommented = re.sub(r"(?m)^# (\w+ = |\[\w+\]$)", r"\1", text)
    shown = tomllib.loads(uncommented)
    assert set(shown) == set(SettingsFields.model_fields) - {"scorer"}
    joined = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for name, info in SettingsFields.model_fields.items():
        assert " ".join((info.description or "?").split()) in joined, name
    path = tmp_path / "all.toml"
    path.write_text(uncommented)
    assert load_settings({}, path).model == "org/model"


def test_settings_page_names_every_setting():
    page = config_docs.settings_page()
    for path in known_paths():
        assert f"| `{path[-1]}` |" in page


def test_settings_need_no_heavy_library():
    code = (
        "import sys, heretic.config, heretic.prompts, heretic.utils, heretic.config.reference\n"
        "heretic.config.Settings(model='m').fingerprint()\n"
        "print(*{'torch', 'transformers', 'datasets', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == ""


def test_default_scorers_follow_the_goal() -> None:
    kinds = [scorer.optimization for scorer in Settings(model="x", goal="induce").scorers]
    assert kinds == ["maximize", "minimize"]
    assert Settings(model="x").scorers[0].optimization == "minimize"


def test_inducing_needs_something_to_maximize() -> None:
    chosen = [{"plugin": "heretic.scorers.kl_divergence:KLDivergence"}]
    with pytest.raises(SettingsError, match="no scorer is maximized"):
        Settings(model="x", goal="induce", scorers=chosen)


class WithLater(Settings):
    """Settings of a later version."""

    later: int = setting(5, "Search", "Something that did not exist.", as_before=0)
    later_list: tuple[str, ...] = setting((), "Search", "A list.", as_before=[])
    always: int = setting(0, "Search", "Something that renames folders.")


def fingerprint_of(kind: type[Settings], **values: Any) -> dict[str, Any]:
    return kind.from_layers([SettingsLayer(ARGUMENTS, {"model": "m", **values})]).fingerprint()


def test_a_setting_added_later_is_left_out_of_the_fingerprint_where_it_changes_nothing():
    base = {**fingerprint_of(Settings), "always": 0}
    assert fingerprint_of(WithLater, later=0) == base
    assert fingerprint_of(WithLater) == {**base, "later": 5}
    other = fingerprint_of(WithLater, later=7, later_list=["x"])
    assert other == {**base, "later": 7, "later_list": ["x"]}


def test_so_is_a_key_added_to_the_table_of_a_scorer():
    class LaterScorer(ScorerSpecification):
        weight: float = Field(1.0, description="A key.", json_schema_extra={AS_BEFORE: 1.0})

    class LaterSettings(Settings):
        scorers: tuple[LaterScorer, ...] = setting((), "Scorers", "Metrics.")

    chosen = {"plugin": "keyword"}
    before = fingerprint_of(Settings, scorers=[chosen])
    assert fingerprint_of(LaterSettings, scorers=[chosen]) == before
    heavier = fingerprint_of(LaterSettings, scorers=[{**chosen, "weight": 2.0}])
    assert heavier["scorers"] == [{**before["scorers"][0], "weight": 2.0}]


def test_a_key_of_a_scorer_means_as_before_by_its_default():
    """Runs made without the key get its default."""
    keys = next(s.keys for s in settings_of() if s.name == "scorers")
    assert all(key.as_before in ((), (key.default,)) for key in keys)


def test_a_record_made_before_a_setting_existed_means_as_before():
    known = values_as_before()
    added = {
        name: value for name, value in values_as_before(WithLater).items() if name not in known
    }
    assert added == {"later": 0, "later_list": []}


def test_a_scorer_that_the_defaults_gain_later_is_left_out_of_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
):
    before = Settings(model="m")
    added = {"plugin": "words", "optimization": "none", "name": "later"}
    scorers = [*(scorer.model_dump() for scorer in before.scorers), added]
    after = Settings(model="m", scorers=scorers)
    assert after.fingerprint() != before.fingerprint()
    monkeypatch.setattr("heretic.config.tables.ADDED_SCORERS", ("later",))
    assert after.fingerprint() == before.fingerprint()
    searched = [*scorers[:-1], {**added, "optimization": "minimize"}]
    assert Settings(model="m", scorers=searched).fingerprint() != before.fingerprint()


@pytest.mark.parametrize("size", ["5", "0GB", "-1GB", "five", "5GiB", "nanGB", "", "5 GB 3"])
def test_a_shard_size_that_cannot_be_read_is_said_at_once(size: str) -> None:
    with pytest.raises(SettingsError, match="max_shard_size"):
        Settings(model="org/model", max_shard_size=size)


@pytest.mark.parametrize("size", ["5GB", "1.5gb", " 500 MB ", "1TB"])
def test_shard_sizes_stay_as_written(size: str) -> None:
    assert Settings(model="org/model", max_shard_size=size).max_shard_size == size


def test_every_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [known.name for known in settings_of() if known.kind == "path"]
    assert {"save_directory", "study_checkpoint_dir", "start_plans"} <= set(names)
    lines = "".join(f'{name} = "~/there/{name}"\n' for name in (*names, "model"))
    Path("user.toml").write_text(lines)
    settings = load_settings({}, Path("user.toml"))
    for name in names:
        assert getattr(settings, name) == tmp_path / "there" / name
    assert settings.model == str(tmp_path / "there" / "model")
    with pytest.raises(SettingsError, match=r"save_directory.*home"):
        Settings(model="m", save_directory="~nobody-of-that-name/x")
