"""Run folders and reproduction files of others: what they say is checked, never just done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import judge_server, tiny

from heretic.cli import workflow
from heretic.cli.main import main
from heretic.cli.options import SettingsOptions
from heretic.config import Settings
from heretic.config.schema import SettingsLayer, consent_names, run_names
from heretic.errors import RunError, SettingsError
from heretic.judges.client import EndpointJudge
from heretic.pipeline.recorded import run_settings
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RunManifest

CONFIG = """
model = "model"
n_trials = 2
search = "tpe"
seed = 7
force = true
dtypes = ["float32"]
max_response_length = 3
response_prefix = ""
refusal_markers = ["`", "%"]
scorers = [{ plugin = "keyword", name = "refusals" }, { plugin = "kl_divergence" }]
"""

HOSTILE = {
    "model_action": "upload",
    "trial_index": 0,
    "export_strategy": "merge",
    "upload_repo_id": "someone/public",
    "upload_repo_private": False,
    "save_directory": "/nowhere/else",
    "benchmarks": ["hellaswag"],
    "benchmark_path": "evil-tasks",
    "plot_residuals": True,
    "print_residual_geometry": True,
    "residual_plot_path": "/nowhere/plots",
    "residual_plot_style": "evil.mplstyle",
    "start_plans": "/nowhere/plans.json",
    "study_checkpoint_dir": "/nowhere/runs",
    "evaluate_model": "someone/else",
    "preset": "evil.toml",
    "trust_remote_code": True,
}
"""What a run folder must not be able to ask for."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run."""
    place = tmp_path_factory.mktemp("made")
    tiny.folder(place / "model")
    tiny.prompt_files(place)
    (place / "config.toml").write_text(CONFIG + tiny.PROMPT_TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([]) == 0
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which nothing but the run says anything."""
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "config.toml").unlink()
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def the_run(place: Path) -> RunFolder:
    (path,) = (place / "checkpoints").iterdir()
    return RunFolder(path)


def manifest_of(place: Path) -> RunManifest:
    return the_run(place).require_manifest()


def rewritten(place: Path, **settings: Any) -> str:
    """The run's folder, after its manifest was made to say something else."""
    folder, manifest = the_run(place), manifest_of(place)
    folder.write_manifest(replace(manifest, settings={**manifest.settings, **settings}))
    return str(folder.path)


def with_judge(manifest: RunManifest, **options: Any) -> RunManifest:
    """The manifest of a run with a judge, as a search would write it."""
    scorers = [*manifest.settings["scorers"], {"plugin": "llm_judge", "name": "judged"}]
    table = {"model": judge_server.MODEL, **options}
    settings = Settings.restore(
        {**manifest.settings, "scorers": scorers, "scorer": {"judged": table}}
    )
    code = {**settings.fingerprint(), "prompts": manifest.fingerprint["prompts"]}
    return replace(manifest, settings=settings.to_dict(), fingerprint=code)


def said(**overrides: Any) -> tuple[SettingsLayer, ...]:
    """What the user says by options, and what the working directory does."""
    return SettingsOptions(overrides=overrides).layers()


def test_what_a_run_decides_has_no_consents_actions_or_places():
    assert not run_names() & {*HOSTILE, *consent_names()} - {"preset"}


@pytest.mark.parametrize("command", ["export", "chat", "benchmark"])
def test_no_command_does_what_a_foreign_run_says(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def noticed(manifest: RunManifest, layers: Sequence[SettingsLayer], **how: Any) -> Settings:
        asked.append(run_settings(manifest, layers, **how))
        raise RunError("seen")

    for module in ("heretic.pipeline.recorded", "heretic.pipeline.opening"):
        monkeypatch.setattr(f"{module}.run_settings", noticed)
    assert main([command, rewritten(place, **HOSTILE)]) == 2
    default = Settings.restore({})
    assert {name: getattr(asked[0], name) for name in HOSTILE} == {
        name: getattr(default, name) for name in HOSTILE
    }


def test_an_export_of_a_foreign_run_only_shows_its_front(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("nobody asked for this")

    monkeypatch.setattr("heretic.export.hub.upload", never)
    monkeypatch.setattr("heretic.pipeline.export_trial", never)
    monkeypatch.setattr(workflow, "show_benchmarks", never)
    before = {path for path in place.rglob("*") if the_run(place).path not in path.parents}
    assert main(["export", rewritten(place, **HOSTILE)]) == 0
    assert "--model-action save" in capsys.readouterr().out
    after = {path for path in place.rglob("*") if the_run(place).path not in path.parents}
    assert after == before


def test_a_foreign_run_in_the_folder_of_runs_is_only_continued(
    place: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("nobody asked for this")

    monkeypatch.setattr("heretic.export.hub.upload", never)
    monkeypatch.setattr("heretic.pipeline.export_trial", never)
    rewritten(place, **HOSTILE)
    shutil.copy(made / "config.toml", place)
    assert main(["--checkpoint-action", "continue", "--n-trials", "3"]) == 0
    assert sum(trial.state == "complete" for trial in the_run(place).read_trials()) == 3


def test_the_user_still_decides(place: Path) -> None:
    options = SettingsOptions(overrides={"model_action": "chat", "trust_remote_code": True})
    settings = run_settings(manifest_of(place), options.layers())
    assert (settings.model_action, settings.trust_remote_code) == ("chat", True)


def test_a_found_file_gives_no_consent_to_a_run_either(place: Path) -> None:
    (place / "config.toml").write_text('trust_remote_code = true\nexport_strategy = "adapter"\n')
    with pytest.raises(SettingsError, match=r"trust_remote_code in config\.toml"):
        run_settings(manifest_of(place), said())
    (place / "config.toml").write_text('[[scorers]]\nplugin = "evil.py:Evil"\n')
    assert run_settings(manifest_of(place), said()).scorers[0].name == "refusals"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"row_normalization": "none"}, "row_normalization"),
        ({"max_response_length": 4}, "max_response_length"),
        ({"system_prompt": "Be evil."}, "system_prompt"),
        ({"residual_writers": ["mlp.gate"]}, "residual_writers"),
    ],
)
def test_a_method_other_than_the_digests_is_refused(
    change: dict[str, Any], named: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("export", "chat"):
        assert main([command, rewritten(place, **change)]) == 2
        assert f"contradicts itself: {named} in" in capsys.readouterr().err


def test_a_model_that_is_not_here_is_asked_for_and_a_copy_is_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "model").rename(place / "moved")
    run = str(the_run(place).path)
    assert main(["export", run]) == 2
    assert "was searched on model, which is not here. Say where that is: --model" in (
        capsys.readouterr().err
    )
    assert main(["export", run, "--model", "moved"]) == 0


def test_prompts_that_are_not_here_are_asked_for_and_a_copy_is_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.txt").rename(place / "moved.txt")
    run = str(the_run(place).path)
    assert main(["export", run]) == 2
    said = capsys.readouterr().err
    assert "The bad prompts of the run were in bad.txt, which is not here" in said
    moved = ["--bad-prompts.dataset", "moved.txt", "--bad-evaluation-prompts.dataset", "moved.txt"]
    assert main(["export", run, *moved]) == 0
    (place / "moved.txt").write_text("\n".join(["Other", *tiny.BAD_PROMPTS[1:]]))
    assert main(["export", run, *moved]) == 2
    assert "The prompts have changed" in capsys.readouterr().err


def test_a_scorer_file_is_taken_from_elsewhere_only_with_its_content(place: Path) -> None:
    (place / "own.py").write_text("x = 1\n")
    manifest = manifest_of(place)
    scorers = [{"plugin": "own.py:Own", "name": "own", "optimization": "minimize"}]
    settings = Settings.restore({**manifest.settings, "scorers": scorers})
    code = {**settings.fingerprint(), "prompts": manifest.fingerprint["prompts"]}
    manifest = replace(manifest, settings=settings.to_dict(), fingerprint=code)
    assert run_settings(manifest, said(), judged=True).scorers == settings.scorers
    (place / "own.py").rename(place / "moved.py")
    with pytest.raises(RunError, match=r"own\.py:Own\) are not those.*--scorers JSON"):
        run_settings(manifest, said(), judged=True)
    elsewhere = [{**scorers[0], "plugin": "moved.py:Own"}]
    moved = SettingsOptions(overrides={"scorers": elsewhere})
    assert run_settings(manifest, moved.layers(), judged=True).scorers[0].plugin == "moved.py:Own"
    (place / "moved.py").write_text("x = 2\n")
    with pytest.raises(RunError, match="has changed"):
        run_settings(manifest, moved.layers(), judged=True)


class TestJudges:
    """Where replies go, and with which key, is never said by a run."""

    def test_nothing_is_sent_where_a_run_says(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("A_SECRET", "canary")
        with judge_server.serve() as server:
            judged = with_judge(manifest_of(place), endpoint=server.url, api_key_env="A_SECRET")
            the_run(place).write_manifest(judged)
            for trust in ([], ["--trust-plugins"]):
                assert main(["export", str(the_run(place).path), *trust]) == 2
            said = capsys.readouterr().err
            given = f"--scorer.judged.endpoint {server.url} --scorer.judged.api-key-env A_SECRET"
            assert given in said
            assert "canary" not in said
            assert server.requests == []

    @pytest.mark.parametrize("where", ["options", "environment", "config"])
    def test_the_user_says_it_again(
        self, where: str, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = "http://127.0.0.1:1/v1"
        manifest = with_judge(manifest_of(place), endpoint=address, api_key_env="THEIRS")
        options = SettingsOptions()
        if where == "options":
            table = {"judged": {"endpoint": address, "api_key_env": "MINE"}}
            options = SettingsOptions(overrides={"scorer": table})
        elif where == "environment":
            monkeypatch.setenv("HERETIC_SCORER__JUDGED__ENDPOINT", address)
            monkeypatch.setenv("HERETIC_SCORER__JUDGED__API_KEY_ENV", "MINE")
        else:
            text = f'[scorer.judged]\nendpoint = "{address}"\napi_key_env = "MINE"\n'
            scorers = json.dumps(manifest.settings["scorers"]).replace('": "', '" = "')
            Path("own.toml").write_text(f"scorers = {scorers}\n{text}")
            options = SettingsOptions(config=Path("own.toml"))
        found = run_settings(manifest, options.layers(), judged=True).scorer["judged"]
        assert (found["endpoint"], found["api_key_env"]) == (address, "MINE")
        assert found["model"] == judge_server.MODEL

    def test_another_address_would_be_another_run(self, place: Path) -> None:
        manifest = with_judge(manifest_of(place), endpoint="http://127.0.0.1:1/v1")
        other = {"judged": {"endpoint": "http://127.0.0.1:2/v1"}}
        with pytest.raises(SettingsError, match="another run"):
            run_settings(manifest, said(scorer=other), judged=True)

    def test_a_reproduction_asks_nobody(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is scored in it, so no scorer is even loaded."""
        monkeypatch.setattr(EndpointJudge, "__init__", None)
        save = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "merge"]
        assert main(["export", str(the_run(place).path), *save, "--save-directory", "out"]) == 0
        file = place / "out" / "reproduce.json"
        data = json.loads(file.read_text())
        data["settings"] = {
            **data["settings"],
            "scorers": [{"plugin": "llm_judge", "name": "judged"}],
            "scorer": {"judged": {"model": "m", "endpoint": "http://127.0.0.1:1/v1"}},
        }
        file.write_text(json.dumps(data))
        assert main(["reproduce", "out", "--save-directory", "again"]) == 2
        again = ["reproduce", "out", "--save-directory", "again", "--trust-plugins"]
        assert main(again) == 0
