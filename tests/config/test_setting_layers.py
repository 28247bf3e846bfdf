"""Each reader of settings by itself, how layers merge, and the schema that all of them ask."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import heretic.config.settings as settings_module
from heretic.config import DatasetSpecification, Settings
from heretic.config.nested import decoded, merged, put
from heretic.config.schema import (
    SettingsLayer,
    SettingsOrigin,
    option_name,
    settings_of,
    values_as_before,
)
from heretic.config.sources import (
    COMMAND_LINE,
    DOTENV,
    ENVIRONMENT,
    merged_layers,
    read_arguments,
    read_command_line,
    read_config,
    read_dotenv,
    read_environment,
    read_secrets,
    read_user_layers,
    read_variables,
)
from heretic.errors import SettingsError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without configuration, and no variables of ours."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("HERETIC_")]:
        monkeypatch.delenv(name)


class TestReaders:
    def test_arguments(self):
        values = {"good_prompts": DatasetSpecification(dataset="p.txt"), "max_memory": {0: "1GB"}}
        layer = read_arguments(values)
        assert layer.values["good_prompts"]["dataset"] == "p.txt"
        assert layer.values["max_memory"] == {0: "1GB"}
        assert not layer.of_command

    def test_command_line(self):
        layer = read_command_line({"n_trials": "3"})
        assert (layer.origin, layer.values) == (COMMAND_LINE, {"n_trials": "3"})
        assert layer.of_command

    def test_environment(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HERETIC_GOOD_PROMPTS__SPLIT", "train[:7]")
        monkeypatch.setenv("heretic_seed", "3")
        values = {"good_prompts": {"split": "train[:7]"}, "seed": "3"}
        assert read_environment() == SettingsLayer(ENVIRONMENT, values)

    def test_dotenv(self):
        assert read_dotenv() == SettingsLayer(DOTENV, {}, consents=False)
        Path(".env").write_text(
            "HERETIC_MODEL=m  # which\nexport HERETIC_SYSTEM_PROMPT='Be brief.'\n"
            "HERETIC_SEED\nX=y\n"
            'HERETIC_RESIDUAL_PLOT_TITLE="of ${HERETIC_MODEL}"\nHERETIC_SECRETS_DIR=x\n'
        )
        assert read_dotenv().values == {
            "model": "m",
            "system_prompt": "Be brief.",
            "residual_plot_title": "of m",
        }

    def test_secrets(self, monkeypatch: pytest.MonkeyPatch):
        assert read_secrets().values == {}
        monkeypatch.setenv("HERETIC_SECRETS_DIR", "folder")
        with pytest.raises(SettingsError, match=r"folder does not exist\. Make it, or unset"):
            read_secrets()
        Path("folder").mkdir()
        Path("folder/HERETIC_SEED").write_text("3\n")
        Path("folder/other").write_text("x")
        layer = read_secrets()
        assert (layer.origin.name, layer.values) == ("in the secrets folder folder", {"seed": "3"})
        Path("folder/HERETIC_SEED").write_bytes(b"\xff")
        with pytest.raises(SettingsError, match="A secret in folder cannot be read"):
            read_secrets()

    def test_config(self):
        assert read_config(None).values == {}
        Path("config.toml").write_text("seed = 3\n")
        Path("other.toml").write_text("seed = 4\n")
        default, named = read_config(None), read_config(Path("other.toml"))
        assert (default.origin.name, default.values) == ("in config.toml", {"seed": 3})
        assert (named.origin.name, named.values) == ("in other.toml", {"seed": 4})
        assert (default.of_command, named.of_command) == (False, True)

    @pytest.mark.parametrize(
        ("read", "spelled"),
        [
            (lambda: read_arguments({"good_prompts": {"splt": "x"}}), "good_prompts.split"),
            (lambda: read_command_line({"good_prompts": {"splt": "x"}}), "--good-prompts.split"),
            (
                lambda: read_variables({"HERETIC_GOOD_PROMPTS": '{"splt": "x"}'}, DOTENV),
                "HERETIC_GOOD_PROMPTS__SPLIT",
            ),
        ],
    )
    def test_unknown_keys_of_tables(self, read: Callable[[], SettingsLayer], spelled: str):
        with pytest.raises(SettingsError, match=re.escape(f"Did you mean {spelled}?")):
            read()

    def test_no_file_is_read_twice(self, monkeypatch: pytest.MonkeyPatch):
        read: list[Path] = []
        opened = Path.open

        def counted(path: Path, *arguments: Any, **options: Any) -> Any:
            read.append(path)
            return opened(path, *arguments, **options)

        Path("config.toml").write_text('behavior = "./mine.toml"\npreset = "./presets.toml"\n')
        Path("mine.toml").write_text("seed = 3\n")
        Path("presets.toml").write_text("[all]\nn_trials = 7\n")
        monkeypatch.setattr(Path, "open", counted)
        settings = Settings(model="m")
        assert (settings.seed, settings.n_trials) == (3, 7)
        names = [path.name for path in read if path.parent.name != "config"]
        assert sorted(names) == ["config.toml", "mine.toml", "presets.toml"]


class TestVariables:
    @pytest.mark.parametrize(
        ("variables", "values"),
        [
            ({"HERETIC_DTYPES": '["a", "b"]'}, {"dtypes": ["a", "b"]}),
            ({"HERETIC_DTYPES": "a"}, {"dtypes": "a"}),
            ({"HERETIC_DTYPES": "null"}, {}),
            ({"HERETIC_SEED": None}, {}),
            ({"HERETIC_MODEL": "3"}, {"model": "3"}),
            ({"HERETIC_SCORER__A__B": "3"}, {"scorer": {"a": {"b": 3}}}),
            ({"HERETIC_SCORER__A__B": "null"}, {"scorer": {"a": {"b": None}}}),
            ({"HERETIC_SCORER__A": '{"b": "3"}'}, {"scorer": {"a": {"b": 3}}}),
            ({"HERETIC_SCORER__A__B": '{"c": "3"}'}, {"scorer": {"a": {"b": {"c": "3"}}}}),
            (
                {"HERETIC_SCORER__A__C": "x", "HERETIC_SCORER": '{"a": {"b": 3}}'},
                {"scorer": {"a": {"b": 3, "c": "x"}}},
            ),
            (
                {"HERETIC_BAD_PROMPTS__SPLIT": "s", "HERETIC_BAD_PROMPTS": '{"dataset": "d"}'},
                {"bad_prompts": {"dataset": "d", "split": "s"}},
            ),
            (
                {"HERETIC_BAD_PROMPTS__SPLIT": "s", "HERETIC_BAD_PROMPTS": "no table"},
                {"bad_prompts": "no table"},
            ),
        ],
    )
    def test_values(self, variables: dict[str, str | None], values: dict[str, Any]):
        assert read_variables(variables, ENVIRONMENT).values == values

    @pytest.mark.parametrize(
        "name", ["HERETIC_", "HERETIC_MODEL__X", "HERETIC_BAD_PROMPTS__", "HERETIC_DEVICE_MAP__0"]
    )
    def test_what_is_not_a_setting(self, name: str):
        with pytest.raises(SettingsError, match=f"Unknown setting {name} in the environment"):
            read_variables({name: "x"}, ENVIRONMENT)


class TestMerging:
    def test_tables_merge_and_all_else_replaces(self):
        below = {"a": {"x": 1, "y": [1]}, "b": 1, "c": {"x": 1}}
        above = {"a": {"y": [2], "z": 3}, "c": 2}
        assert merged(below, above) == {"a": {"x": 1, "y": [2], "z": 3}, "b": 1, "c": 2}
        assert below == {"a": {"x": 1, "y": [1]}, "b": 1, "c": {"x": 1}}

    def test_the_first_layer_wins(self):
        here = SettingsOrigin("here", "key")
        layers = [SettingsLayer(here, {"a": number, str(number): 0}) for number in (1, 2, 3)]
        assert merged_layers(layers) == {"a": 1, "1": 0, "2": 0, "3": 0}
        assert merged_layers([]) == {}

    def test_the_order_of_what_users_say(self):
        names = [layer.origin.name for layer in read_user_layers({}, None)]
        assert names == [
            "on the command line",
            "in the environment",
            "in .env",
            "in the secrets folder",
            "in config.toml",
        ]

    def test_ready_made_settings_stand_below(self):
        said = (read_arguments({"model": "m", "behavior": "slop", "preset": "gemma"}),)
        names = [layer.origin.name for layer in settings_module.with_ready_made(said)]
        assert len(names) == 3
        assert "behaviors" in names[1]
        assert names[2].startswith("in preset gemma of ")

    def test_put(self):
        tree: dict[str, Any] = {"a": 1}
        put(tree, ("b", "c"), 2)
        put(tree, ("a", "c"), 2)
        assert tree == {"a": 1, "b": {"c": 2}}

    def test_decoded(self):
        assert decoded({"a": "3", "b": {"c": "x"}, "d": 4}) == {"a": 3, "b": {"c": "x"}, "d": 4}


class TestSchema:
    def test_kinds(self):
        kinds = {setting.name: setting.kind for setting in settings_of()}
        assert kinds["model"] == kinds["system_prompt"] == "text"
        assert (kinds["seed"], kinds["winsorization_quantile"]) == ("integer", "number")
        assert (kinds["upload_repo_private"], kinds["save_directory"]) == ("switch", "path")
        assert (kinds["goal"], kinds["model_action"]) == ("choice", "choice")
        assert (kinds["dtypes"], kinds["benchmarks"]) == ("list of texts", "list of texts")
        assert kinds["chain_of_thought_skips"] == "list of pairs"
        assert kinds["scorers"] == "list of tables"
        assert (kinds["bad_prompts"], kinds["bad_held_out_prompts"]) == ("table", "table")
        assert (kinds["scorer"], kinds["chat_template_kwargs"]) == ("open table", "open table")
        assert (kinds["max_memory"], kinds["device_map"]) == ("mapping", "text or table")

    def test_groups_come_in_their_order(self):
        from heretic.config.declaration import GROUPS

        assert tuple(dict.fromkeys(setting.group for setting in settings_of())) == GROUPS

    def test_names_of_options(self):
        assert option_name("good_prompts", "system_prompt") == "--good-prompts.system-prompt"
        (racing,) = [setting for setting in settings_of() if setting.name == "racing"]
        assert (racing.option, racing.option_off) == ("--racing", "--no-racing")

    def test_nothing_is_as_before_that_does_not_count(self):
        """It would have no effect there."""
        for setting in settings_of():
            assert setting.scores or not setting.as_before
        assert set(values_as_before()) <= {setting.name for setting in settings_of()}
