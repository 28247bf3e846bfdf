"""Files that are merely found give no consent: to run code of others, or to send data away."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from heretic.cli.main import run
from heretic.config import Settings, load_settings
from heretic.config.schema import settings_of
from heretic.errors import HereticError, SettingsError

JUDGE = """
[[scorers]]
plugin = "llm_judge"
name = "judged"

[scorer.judged]
model = "m"
"""

PLUGIN = '[[scorers]]\nplugin = "{plugin}"\nname = "own"\n'

GIVEN: dict[str, tuple[str, str]] = {
    "remote code": ("trust_remote_code = true\n", "trust_remote_code"),
    "benchmark code": ('benchmark_path = "tasks"\n', "benchmark_path"),
    "a tracker": ('track = "wandb"\n', "track"),
    "a tracker's address": (
        'track = "mlflow"\ntrack_address = "http://127.0.0.1:1"\n',
        "track_address",
    ),
    "a scorer file": (PLUGIN.format(plugin="own.py:Own"), "scorers"),
    "a scorer module": (PLUGIN.format(plugin="own:Own"), "scorers"),
    "a scorer module that pretends": (PLUGIN.format(plugin="heretic.scorers.x.py:Own"), "scorers"),
    "an endpoint": (JUDGE + 'endpoint = "http://127.0.0.1:1/v1"\n', "scorer.judged.endpoint"),
    "a key variable": (JUDGE + 'api_key_env = "HF_TOKEN"\n', "scorer.judged.api_key_env"),
    "a cluster": ('workers = 2\nray_address = "auto"\n', "ray_address"),
    "a storage": ('storage = "postgresql://host/study"\n', "storage"),
    "a cluster that is open": ("allow_unauthenticated = true\n", "allow_unauthenticated"),
}
"""What may not be given by a file that was found: TOML, and the setting that the error names."""

VARIABLES = {
    "remote code": "HERETIC_TRUST_REMOTE_CODE=yes\n",
    "benchmark code": "HERETIC_BENCHMARK_PATH=tasks\n",
    "a scorer file": """HERETIC_SCORERS='[{"plugin": "own.py:Own"}]'\n""",
    "an endpoint": (
        """HERETIC_SCORERS='[{"plugin": "llm_judge", "name": "judged"}]'\n"""
        "HERETIC_SCORER__JUDGED__ENDPOINT=http://127.0.0.1:1/v1\n"
    ),
    "a key variable": (
        """HERETIC_SCORERS='[{"plugin": "llm_judge", "name": "judged"}]'\n"""
        """HERETIC_SCORER='{"judged": {"api_key_env": "HF_TOKEN"}}'\n"""
    ),
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", GIVEN)
class TestFound:
    def test_config_toml_is_refused_with_the_command_that_grants_it(self, kind: str):
        text, name = GIVEN[kind]
        Path("config.toml").write_text(text)
        with pytest.raises(SettingsError, match=rf"{name} in config\.toml.*only you") as caught:
            load_settings({"model": "m"})
        assert "--config config.toml" in str(caught.value)
        with pytest.raises(SettingsError, match="only you"):
            Settings(model="m")

    def test_the_same_file_named_by_the_user_counts(self, kind: str):
        Path("config.toml").write_text(GIVEN[kind][0])
        assert load_settings({"model": "m"}, Path("config.toml")) == Settings.restore(
            {"model": "m", **_table(GIVEN[kind][0])}
        )

    def test_so_do_arguments_and_the_options_that_the_error_gives(self, kind: str):
        Path("config.toml").write_text(GIVEN[kind][0])
        table = _table(GIVEN[kind][0])
        expected = Settings.restore({"model": "m", **table})
        assert Settings(model="m", **table) == expected
        with pytest.raises(SettingsError) as caught:
            load_settings({"model": "m"})
        assert _with_options(str(caught.value)) == expected

    def test_a_behaviour_that_a_found_file_names_is_refused_too(self, kind: str):
        Path("own").mkdir()
        Path("own/config.toml").write_text(GIVEN[kind][0])
        Path("config.toml").write_text('behavior = "./own"\n')
        with pytest.raises(SettingsError, match=r"only you|behaviors cannot set it"):
            Settings(model="m")

    def test_so_is_a_preset_whoever_names_it(self, kind: str):
        table = _table(GIVEN[kind][0])
        settings = "\n".join(f"{key} = {_inline(value)}" for key, value in table.items())
        Path("own.toml").write_text(f"[all]\n{settings}\n")
        with pytest.raises(SettingsError, match=r"only you|presets cannot set it"):
            Settings(model="m", preset="own.toml")


@pytest.mark.parametrize("kind", VARIABLES)
class TestEnvFile:
    def test_it_is_refused(self, kind: str):
        Path(".env").write_text(VARIABLES[kind])
        with pytest.raises(SettingsError, match=r"HERETIC_\w+ in \.env.*only you") as caught:
            load_settings({"model": "m"})
        assert _with_options(str(caught.value)) is not None

    def test_the_environment_is_the_users(self, kind: str, monkeypatch: pytest.MonkeyPatch):
        for line in VARIABLES[kind].splitlines():
            name, _, value = line.partition("=")
            monkeypatch.setenv(name, value.strip("'"))
        assert Settings(model="m") != Settings.restore({"model": "m"})


def test_a_key_of_the_user_does_not_go_to_an_address_that_was_found(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("HERETIC_SCORER__JUDGED__API_KEY_ENV", "OPENAI_API_KEY")
    Path("config.toml").write_text(JUDGE + 'endpoint = "http://127.0.0.1:1/v1"\n')
    with pytest.raises(SettingsError, match=r"scorer\.judged\.endpoint in config\.toml"):
        Settings(model="m")


def test_a_found_file_may_say_what_is_the_default_and_may_forbid():
    Path("config.toml").write_text("trust_remote_code = true\n")
    Path(".env").write_text("HERETIC_TRUST_REMOTE_CODE=false\nHERETIC_BENCHMARK_PATH=\n")
    assert not Settings(model="m").trust_remote_code


def test_all_that_one_file_lacks_consent_for_is_said_at_once():
    Path("config.toml").write_text(
        "trust_remote_code = true\n" + JUDGE + 'endpoint = "http://a/v1"\napi_key_env = "K"\n'
    )
    names = r"trust_remote_code, scorer\.judged\.endpoint and scorer\.judged\.api_key_env in"
    with pytest.raises(SettingsError, match=names) as caught:
        Settings(model="m")
    assert "--trust-remote-code --scorer.judged.endpoint http://a/v1" in str(caught.value)


def test_a_behaviour_that_the_user_names_brings_scorer_files_from_beside_it(tmp_path: Path):
    Path("own").mkdir()
    Path("own/config.toml").write_text(PLUGIN.format(plugin="own.py:Own"))
    settings = load_settings({"model": "m", "behavior": "./own"})
    assert settings.scorers[0].plugin == f"{tmp_path.resolve()}/own/own.py:Own"


def test_every_consent_is_off_unless_given_and_changes_no_score():
    """A run can then be resumed with it and without it."""
    consents = [setting for setting in settings_of() if setting.consent]
    assert consents
    for setting in consents:
        assert not setting.default, setting.name
        assert not setting.scores, setting.name


def test_what_is_refused_does_not_tell_the_password():
    Path("config.toml").write_text('storage = "mysql://me:canary-7f3a9c@host/study"\n')
    with pytest.raises(SettingsError, match="storage in config") as caught:
        Settings(model="m")
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(Settings(model="m", storage="mysql://me:canary-7f3a9c@host/study"))


def test_listing_runs_needs_no_consent(capsys: pytest.CaptureFixture[str]):
    Path("config.toml").write_text("trust_remote_code = true\n")
    assert run(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out


def test_classify_takes_a_judge_from_a_file_that_it_is_given():
    Path("config.toml").write_text(PLUGIN.format(plugin="own.py:Own"))
    Path("replies.jsonl").write_text('{"response": "No."}\n')
    with pytest.raises(SettingsError, match=r"scorers in config\.toml"):
        run(["classify", "replies.jsonl", "--scorer", "own"])
    for trusted in (["own", "--config", "config.toml"], ["own.py:Own"]):
        with pytest.raises(HereticError, match=r"own\.py does not exist"):
            run(["classify", "replies.jsonl", "--scorer", *trusted])


def _table(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)


def _with_options(error: str) -> Settings:
    """The settings of a command with the options that the error gives."""
    given = error.partition("say so by ")[2].partition("; in a program")[0].rpartition(", or ")[2]
    found: list[Settings] = []

    import click

    from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options

    @click.command(cls=SettingsCommand)
    @settings_options
    def command(options: SettingsOptions) -> None:
        found.append(options.load(model="m"))

    command.main(shlex.split(given), standalone_mode=False)
    return found[0]
