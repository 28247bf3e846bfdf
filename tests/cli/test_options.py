"""The command line: registry, options made from the settings, exit statuses, help."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from tests.support.data_sets import only

import heretic
from heretic import __version__
from heretic.cli import main as registry
from heretic.cli.options import (
    SettingsCommand,
    SettingsOptions,
    common_settings,
    settings_options,
)
from heretic.config import Settings
from heretic.config.fields.all import SettingsFields
from heretic.config.schema import known_paths
from heretic.errors import HereticError, SettingsError
from heretic.main import main, run
from heretic.system.machine import accelerator, device_name


@click.command("run", cls=SettingsCommand, show_settings=True)
@click.argument("model", required=False)
@settings_options
def stand_in(model: str | None, options: SettingsOptions) -> None:
    """Search."""
    seen.append(options.load(model=model))


seen: list[Settings] = []


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the run command, one that only notes its settings."""
    module = type(sys)("tests.stand_in_command")
    module.command = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests.stand_in_command", module)
    entry = registry.CommandEntry("tests.stand_in_command", "Search.")
    monkeypatch.setitem(registry.COMMANDS, "run", entry)
    monkeypatch.chdir(tmp_path)
    seen.clear()


def settings_of(*arguments: str) -> Settings:
    assert run(arguments) == 0
    return seen.pop()


@pytest.mark.parametrize(
    "arguments",
    [
        ["org/m", "--n-trials", "50"],
        ["--n-trials", "50", "org/m"],
        ["--n-trials=50", "org/m"],
        ["--n_trials", "50", "org/m"],
        ["run", "org/m", "--n-trials", "50"],
        ["--model", "org/m", "--n-trials", "50"],
    ],
)
def test_options_before_and_after_the_model(arguments: list[str]):
    settings = settings_of(*arguments)
    assert settings.model == "org/m"
    assert settings.n_trials == 50


def test_every_setting_is_an_option():
    names = {name for parameter in stand_in.params for name in parameter.opts}
    tables = {path[0] for path in known_paths() if len(path) > 1 and path[0] != "scorers"}
    for path in known_paths():
        if path != (path[0],) and path[0] == "scorers":
            continue  # its elements are tables, given as JSON
        if path[0] not in tables or len(path) > 1:
            assert "--" + ".".join(path).replace("_", "-") in names


def test_nested_options():
    settings = settings_of(
        "m", "--good-prompts.split", "train[:5]", "--good_prompts.system_prompt", "Be brief."
    )
    assert only(settings.good_prompts).split == "train[:5]"
    assert only(settings.good_prompts).system_prompt == "Be brief."
    assert only(settings.good_prompts).dataset == "mlabonne/harmless_alpaca"


def test_flags():
    assert settings_of("m").orthogonalize_direction is True
    assert settings_of("m", "--no-orthogonalize-direction").orthogonalize_direction is False
    assert settings_of("m", "--plot-residuals").plot_residuals is True
    assert settings_of("m").upload_repo_private is None
    assert settings_of("m", "--upload-repo-private").upload_repo_private is True
    assert settings_of("m", "--no-upload-repo-private").upload_repo_private is False


@pytest.mark.parametrize(
    "arguments",
    [['--dtypes=["float32", "auto"]'], ["--dtypes", "float32", "--dtypes", "auto"]],
)
def test_lists_as_json_or_repeated(arguments: list[str]):
    assert settings_of("m", *arguments).dtypes == ("float32", "auto")


def test_scorers_and_their_options():
    settings = settings_of(
        "m",
        "--scorers",
        '{"plugin": "a.py:OneThing"}',
        "--scorers",
        '[{"plugin": "b:Two", "optimization": "none"}]',
        "--scorer.one_thing.limit",
        "3",
        "--scorer.two.words=[1, 2]",
        "--scorer.two.text=plain",
    )
    assert [scorer.name for scorer in settings.scorers] == ["one_thing", "two"]
    assert settings.scorer == {"one_thing": {"limit": 3}, "two": {"words": [1, 2], "text": "plain"}}


def test_tables_as_json():
    settings = settings_of("m", "--max-memory", '{"0": "1GB"}', "--device-map", '{"": "cpu"}')
    assert settings.max_memory == {0: "1GB"}
    assert settings.device_map == {"": "cpu"}


def test_negative_numbers_and_dashes_are_values():
    with pytest.raises(SettingsError, match="greater than or equal"):
        settings_of("m", "--seed", "-1")
    assert only(settings_of("m", "--good-prompts.prefix", "--").good_prompts).prefix == "--"


def test_the_command_line_is_above_the_environment_and_the_file(monkeypatch: pytest.MonkeyPatch):
    Path("config.toml").write_text('model = "from-file"\nn_trials = 4\nseed = 4\n')
    Path("other.toml").write_text("n_startup_trials = 9\n")
    monkeypatch.setenv("HERETIC_N_TRIALS", "5")
    assert settings_of().model == "from-file"
    assert settings_of().n_trials == 5
    assert settings_of("--n-trials", "6", "--no-plot-residuals").n_trials == 6
    settings = settings_of("m", "--config", "other.toml")
    assert (settings.seed, settings.n_startup_trials) == (None, 9)


def refusal(*arguments: str) -> str:
    with pytest.raises(HereticError) as caught:
        run(arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m", "--n-trails", "5"], "Unknown option --n-trails. Did you mean --n-trials?"),
        (["m", "--good-prompts.splt=x"], "Did you mean --good-prompts.split?"),
        (["m", "--zzz"], "Unknown option --zzz. Did you mean --"),
        (["m", "-x"], "Unknown option -x."),
        (["m", "--n-trials"], "'--n-trials' requires an argument. See `heretic"),
        (["m", "--n-trials", "x"], "Setting --n-trials on the command line ('x')"),
        (["m", "n"], "unexpected extra argument"),
        (["--seed", "3", "evaluate", "m"], "The command comes first: heretic evaluate ..."),
        (["m", "--scorer.refusals", "3"], "--scorer.NAME.OPTION VALUE"),
        (["m", "--scorer.refusals.x"], "requires an argument"),
        (["m", "--scorer", "3"], "not a JSON table"),
        (["m", "--config", "none.toml"], "none.toml does not exist."),
        ([], "No model given. Usage: heretic MODEL"),
        (["config", "extra"], "See `heretic config --help`."),
    ],
)
def test_wrong_command_lines(arguments: list[str], said: str):
    assert said in refusal(*arguments)


def test_a_folder_with_the_name_of_a_command():
    assert settings_of("./config").model == "./config"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["help", "unheard-of"]])
def test_help_shows_commands_ten_options_and_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name in registry.COMMANDS:
        assert f"\n  {name}" in out
    settings = [line for line in out.splitlines() if line.startswith("  --")]
    own = {"--config", "--help-all", "--version"}
    assert len([line for line in settings if line.split()[0] not in own]) == 10
    assert "--SET.split" not in out
    assert "heretic --help-all" in out
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) < 75


def test_the_short_meaning_of_a_setting_is_not_cut_within_brackets():
    for option, meaning in common_settings():
        assert meaning.count("(") == meaning.count(")"), option


def test_the_example_of_the_help_is_a_command(capsys: pytest.CaptureFixture[str]):
    main(["--help"])
    example = capsys.readouterr().out.partition("Example:\n")[2]
    name, *arguments = shlex.split(example.replace("\\\n", " "))
    assert name == "heretic"
    assert settings_of(*arguments).model_action == "save"


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]):
    assert main(["help", "export"]) == 0
    named = capsys.readouterr().out
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out == named
    assert "Usage: heretic export" in named


def test_help_of_the_run_command_says_where_settings_are_listed(
    capsys: pytest.CaptureFixture[str],
):
    assert main(["m", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--n-trials INTEGER" in out
    assert "--SET.split" not in out
    assert "heretic --help-all" in out


@pytest.mark.parametrize("arguments", [["--help-all"], ["m", "--help-all"]])
def test_all_help_shows_commands_and_every_setting(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "--good-prompts.split" not in out
    assert "--SET.split" in out
    for name in registry.COMMANDS:
        assert f"\n  {name}" in out
    for name, info in SettingsFields.model_fields.items():
        option = name.replace("_", "-")
        shown = out if not name.endswith("prompts") else f"--{out}"
        assert f"--{option}" in shown or f"--[no-]{option}" in shown or f"  {option} " in shown
        assert " ".join((info.description or "?").split()[:2]) in " ".join(out.split()), name
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    release, library, device, place = capsys.readouterr().out.splitlines()
    assert release == f"heretic {__version__}"
    assert library == f"transformers {metadata.version('transformers')}"
    assert device.startswith(f"torch {metadata.version('torch')}, device: ")
    assert device.endswith(device_name(accelerator()))
    assert str(Path(heretic.__file__).parent) in place


def test_version_of_a_torch_that_does_not_work(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise OSError('libcuda.so.1: cannot open\\nit')\n")
    path = os.pathsep.join([str(tmp_path), str(Path(heretic.__file__).parents[1])])
    done = process("-m", "heretic", "--version", PYTHONPATH=path)
    assert done.returncode == 0
    assert "device: unknown, since torch does not work here: libcuda.so.1: " in done.stdout


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), click.Abort(), EOFError()])
def test_interrupted(
    raised: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert main_with(raised, monkeypatch) == 130
    assert "Interrupted." in capsys.readouterr().err


def test_what_the_user_can_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    error = SettingsError("It is wrong.", remedy="Mend it.")
    assert main_with(error, monkeypatch) == 2
    assert capsys.readouterr() == ("", "Error: It is wrong. Mend it.\n")


def test_errors_bring_no_control_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main_with(SettingsError("\x1b]0;renamed\x07 is no model."), monkeypatch) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo"], ["reproduce", "reproduce.json"]])
def test_a_configuration_that_would_be_ignored_is_refused(arguments: list[str]):
    Path("own.toml").write_text("n_trials = 3\n")
    assert "takes no --config" in refusal(*arguments, "--config", "own.toml")


@pytest.mark.parametrize(
    "option", [["--model-action", "chat"], ["--model", "m"], ["--benchmarks", "mmlu"]]
)
def test_the_demo_refuses_what_it_would_ignore(option: list[str]):
    assert f"The demo takes no {option[0]}." in refusal("demo", *option)


def test_the_demo_checks_its_destination_first(monkeypatch: pytest.MonkeyPatch):
    def never(_: object) -> Path:
        raise AssertionError("no work for nothing")

    monkeypatch.setattr("heretic.demo.job.planted_model", never)
    Path("heretic-demo-model").mkdir()
    Path("heretic-demo-model/thesis.txt").write_text("x")
    assert "heretic-demo-model is not empty" in refusal("demo")


@pytest.mark.parametrize("command", ["export", "reproduce"])
def test_a_path_that_the_system_refuses_is_said_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
):
    assert main([command, "x" * 300]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "xxx: File name too long. " in line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        main_with(ZeroDivisionError(), monkeypatch)


def test_a_command_can_give_its_status(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stand_in, "callback", lambda **_: 130)
    assert main(["m"]) == 130


def main_with(raised: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def callback(**_: Any) -> None:
        raise raised

    monkeypatch.setattr(stand_in, "callback", callback)
    return main(["m"])


def process(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [["--help"], ["config"], ["evalute", "--x"]])
def test_no_heavy_library_is_loaded(arguments: list[str]):
    heavy = "{'torch', 'transformers', 'datasets', 'optuna', 'matplotlib', 'dotenv'}"
    code = (
        f"import sys; from heretic.main import main; main({arguments!r})\n"
        f"sys.stderr.write(str({heavy} & set(sys.modules)))"
    )
    assert process("-c", code).stderr.endswith("set()")


def test_as_a_module(tmp_path: Path):
    assert process("-m", "heretic", "--version").stdout.startswith(f"heretic {__version__}\n")
    (tmp_path / "config.toml").write_text("n_trails = 5\n")
    done = process("-m", "heretic", "m", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: Unknown setting n_trails in config.toml. Did you mean")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", sorted(registry.COMMANDS))
def test_every_command_can_be_loaded(name: str):
    """Its module exposes a click command of that name, and has help."""
    if name == "run":  # stands aside in this file
        return
    module = registry.COMMANDS[name].module
    assert importlib.util.find_spec(module) is not None
    command = registry.heretic.get_command(click.Context(registry.heretic), name)
    assert isinstance(command, click.Command)
    assert command.help
