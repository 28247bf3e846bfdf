"""A job's settings, where they may stand, and what its folder says of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.support.batch_case import load, write
from tests.support.run_case import MANIFEST

from heretic.batch.checks import check_start
from heretic.batch.file import OWNER
from heretic.batch.job import ENDING, Job, condition, do, run_of, shared_places
from heretic.batch.owner import check_owner, claim
from heretic.cli.commands.batch import command
from heretic.config.settings import Settings
from heretic.errors import ExportError, RunError, SettingsError
from heretic.runs.folder import RunFolder
from heretic.runs.lock import RunLock
from heretic.runs.manifest import RunManifest

DEFAULTS = "[defaults]\nmodel = 'org/m'\nseed = 7\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs(*tables: str, defaults: str = DEFAULTS) -> list[Job]:
    return load(write(Path("night.toml"), *tables, defaults=defaults))


def job(table: str = "name = 'a'", **kinds: str) -> Job:
    return jobs(table, **kinds)[0]


def begun(one: Job, name: str = "m-0123456789ab") -> RunFolder:
    """A run of the job, of which nothing but the manifest is there."""
    folder = RunFolder(one.folder / name)
    values = {**MANIFEST.to_dict(), "settings": one.settings.recorded()}
    del values["checksum"]
    folder.path.mkdir(parents=True)
    with folder.lock():
        folder.write_manifest(RunManifest.from_dict({**values, "schema_version": 2}))
    return folder


class TestSettings:
    def test_each_job_has_a_folder_in_that_of_the_batch(self):
        one = job(defaults=DEFAULTS + "study_checkpoint_dir = 'runs'")
        assert one.folder == one.settings.study_checkpoint_dir == Path("runs/night/a")

    def test_nothing_is_done_with_trials_unless_it_is_said(self):
        assert job().settings.model_action == "none"

    def test_what_is_saved_lies_in_the_jobs_folder_unless_it_is_said(self):
        saving = "model_action = 'save'"
        one, other = jobs(f"name = 'a'\n{saving}", f"name = 'b'\n{saving}\nsave_directory = 'x'")
        assert one.settings.save_directory == Path("checkpoints/night/a/model")
        assert other.settings.save_directory == Path("x")

    @pytest.mark.parametrize(
        ("table", "told"),
        [
            ("model = ''", "No model is given in job a"),
            ("study_checkpoint_dir = 'x'", "study_checkpoint_dir stands in job a"),
            ("checkpoint_action = 'restart'", "checkpoint_action is set"),
            ("evaluate_model = 'org/n'", "evaluate_model is set"),
            ("n_additional_trials = 5", "n_additional_trials is set"),
            ("save_directory = 'x'", "model_action is not"),
            ("n_trials = 'many'", "n_trials in job a of night.toml"),
        ],
    )
    def test_what_makes_no_job_is_refused(self, table: str, told: str):
        with pytest.raises(SettingsError, match=told):
            job(f"name = 'a'\n{table}")

    def test_two_jobs_do_not_save_to_one_place(self):
        saving = DEFAULTS + "model_action = 'save'\nsave_directory = 'x'\n"
        found = shared_places(jobs("name = 'a'", "name = 'b'", defaults=saving))
        assert list(found) == ["b"]
        assert "job a" in found["b"]
        saving = DEFAULTS + "model_action = 'save'\n"
        assert shared_places(jobs("name = 'a'", "name = 'b'", defaults=saving)) == {}

    @pytest.mark.parametrize(
        ("first", "second", "told"),
        [
            ("x", "x/b", {"b": "one is in the other"}),
            ("x/y/../z/a", "./x", {"b": "one is in the other"}),
            ("x", "xy", {}),
            ("checkpoints/night/b/c", "y", {"a": "job b keeps its run in"}),
            ("x", "checkpoints", {"b": "job a keeps its run in"}),
            ("checkpoints/night/a", "y", {"a": "job a keeps its run in"}),
            ("checkpoints/night/a/mine", "checkpoints/saved", {}),
        ],
    )
    def test_no_place_to_save_in_holds_another(self, first: str, second: str, told: dict[str, str]):
        """The second to be saved would find its place filled, after its search."""
        saving = DEFAULTS + "model_action = 'save'\n"
        where = {"a": first, "b": second}
        tables = [f"name = '{name}'\nsave_directory = '{path}'" for name, path in where.items()]
        found = shared_places(jobs(*tables, defaults=saving))
        assert found.keys() == told.keys()
        assert all(told[name] in said for name, said in found.items())


class TestFolderOfABatch:
    """Two batch files of one name would share it."""

    def files(self) -> tuple[Path, Path]:
        for name in ("first", "second", "checkpoints/night"):
            Path(name).mkdir(parents=True)
        made = Path("first/night.toml"), Path("second/night.toml")
        for file in made:
            file.touch()
        return made

    def test_another_file_of_the_name_is_refused(self, place: Path):
        first, second = self.files()
        folder = Path("checkpoints/night")
        check_owner(first, folder)
        claim(first, folder)
        check_owner(first, folder)
        check_owner(place / first, folder)
        with pytest.raises(SettingsError, match="which has the same name as second") as caught:
            check_owner(second, folder)
        assert str(place / first) in str(caught.value)

    def test_a_file_that_was_moved_and_a_copy_of_all_of_it_go_on(self, place: Path):
        first, _ = self.files()
        claim(first, Path("checkpoints/night"))
        (place / "copy").mkdir()
        for name in ("first", "checkpoints"):
            shutil.copytree(name, place / "copy" / name)
        check_owner(place / "copy" / first, place / "copy/checkpoints/night")
        first.replace("night.toml")
        check_owner(Path("night.toml"), Path("checkpoints/night"))

    def test_what_does_not_say_whose_it_is(self):
        first, _ = self.files()
        (Path("checkpoints/night") / OWNER).write_text("[]")
        with pytest.raises(RunError, match="does not say which batch file"):
            check_owner(first, Path("checkpoints/night"))


class TestPlacesOfSettings:
    """The batch file stands in for config.toml, as a file of `--config` does."""

    def test_config_toml_is_not_read(self):
        Path("config.toml").write_text("n_trials = 3")
        assert job().settings.n_trials != 3

    def test_the_environment_overrides_defaults(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HERETIC_N_TRIALS", "3")
        assert job(defaults=DEFAULTS + "n_trials = 5").settings.n_trials == 3

    def test_it_does_not_override_what_tells_jobs_apart(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HERETIC_N_TRIALS", "3")
        with pytest.raises(SettingsError, match="HERETIC_N_TRIALS in the environment"):
            job("name = 'a'\nn_trials = 5")
        monkeypatch.delenv("HERETIC_N_TRIALS")
        monkeypatch.setenv("HERETIC_GOOD_PROMPTS__SPLIT", "train[:3]")
        assert job("name = 'a'\ngood_prompts = { column = 'x' }").settings.n_trials
        with pytest.raises(SettingsError, match="HERETIC_GOOD_PROMPTS__SPLIT"):
            job("name = 'a'\ngood_prompts = { split = 'train' }")

    @pytest.mark.parametrize(
        "consent", ["trust_remote_code = true", "ray_address = 'h:1'", "track = 'mlflow'"]
    )
    def test_the_file_that_is_named_gives_consent(self, consent: str):
        name = consent.partition(" ")[0]
        assert getattr(job(f"name = 'a'\n{consent}").settings, name)
        assert getattr(job(defaults=DEFAULTS + consent).settings, name)

    def test_a_file_that_was_merely_found_gives_none(self):
        Path(".env").write_text("HERETIC_TRUST_REMOTE_CODE=true")
        with pytest.raises(SettingsError, match="only you can allow that"):
            job()

    def test_a_scorer_in_a_file_needs_consent_too(self):
        Path(".env").write_text('HERETIC_SCORERS=[{"plugin": "evil.py:Evil"}]')
        with pytest.raises(SettingsError, match="only you can allow that"):
            job()


def finish(one: Job) -> int:
    return do(one, lambda _: 0)


class TestCondition:
    def test_before_anything(self):
        assert condition(job()).state == "waiting"

    def test_with_a_run_that_has_not_ended(self):
        one = job()
        begun(one)
        assert condition(one).state == "unfinished"

    def test_while_a_process_works_on_it(self):
        one = job()
        one.folder.mkdir(parents=True)
        seen: list[str] = []

        def looks(_: Settings) -> int:
            seen.append(condition(one).state)
            return 0

        do(one, looks)
        assert seen == ["running"]

    def test_two_processes_do_not_do_one_job(self):
        one = job()
        one.folder.mkdir(parents=True)
        with (
            RunLock(one.folder, "", "the job").held(),
            pytest.raises(RunError, match="working on the job"),
        ):
            finish(one)

    def test_finished_or_failed(self):
        one = job()
        one.folder.mkdir(parents=True)
        finish(one)
        assert condition(one).state == "finished"

        def fails(_: Settings) -> int:
            raise ExportError("No room.")

        with pytest.raises(ExportError):
            do(one, fails)
        found = condition(one)
        assert (found.state, found.note) == ("failed", "No room.")

    @pytest.mark.parametrize("status", [130, KeyboardInterrupt()])
    def test_interrupted_is_not_ended(self, status: int | KeyboardInterrupt):
        def interrupted(_: Settings) -> int:
            if isinstance(status, int):
                return status
            raise status

        one = job()
        begun(one)
        finish(one)
        try:
            assert do(one, interrupted) == status
        except KeyboardInterrupt:
            assert not isinstance(status, int)
        assert condition(one).state == "unfinished"

    def test_settings_that_have_changed_since_it_finished_are_named(self):
        one = job()
        one.folder.mkdir(parents=True)
        finish(one)
        found = condition(job("name = 'a'\ntrial_index = 'knee'\nn_trials = 3"))
        assert found.state == "changed"
        assert "n_trials, trial_index" in found.note
        assert condition(job("name = 'a'")).state == "finished"

    def test_the_batchs_folder_may_be_moved(self):
        saving = "name = 'a'\nmodel_action = 'save'"
        one = job(saving)
        one.folder.mkdir(parents=True)
        finish(one)
        Path("checkpoints").rename("moved")
        moved = DEFAULTS + "study_checkpoint_dir = 'moved'\n"
        assert condition(job(saving, defaults=moved)).state == "finished"
        other = job(f"{saving}\nsave_directory = 'x'", defaults=moved)
        assert "save_directory" in condition(other).note

    def test_a_failed_job_whose_settings_have_changed_is_tried_again(self):
        one = job()
        one.folder.mkdir(parents=True)
        with pytest.raises(ZeroDivisionError):
            do(one, lambda _: 1 // 0)
        assert condition(one).state == "failed"
        assert "ZeroDivisionError" in condition(one).note
        assert condition(job("name = 'a'\nn_trials = 3")).state == "unfinished"

    def test_the_run_is_that_of_the_settings(self):
        one = job()
        folder = begun(one)
        assert run_of(one) == folder.path
        assert run_of(job("name = 'a'\nn_trials = 3")) == folder.path
        assert run_of(job("name = 'a'\nmax_response_length = 3")) is None
        assert run_of(job("name = 'a'", defaults="[defaults]\nmodel = 'org/m'")) == folder.path
        other = job("name = 'a'", defaults="[defaults]\nmodel = 'org/m'\nseed = 8")
        assert run_of(other) is None

    def test_a_finished_jobs_run_is_the_one_that_it_has_finished_with(self):
        """Another of the same settings, with other prompts, may have been written to since."""
        one = job()
        first = begun(one)
        first.events_path.touch()
        os.utime(first.events_path, (1, 1))
        second = begun(one, "m-abcdef012345")
        second.events_path.touch()
        finish(one)
        assert run_of(one) == second.path
        os.utime(first.manifest_path)
        assert run_of(one) == second.path
        (one.folder / ENDING).unlink()
        os.utime(second.manifest_path, (2, 2))
        assert run_of(one) == first.path

    def test_an_ending_that_says_nothing_is_an_error(self):
        one = job()
        one.folder.mkdir(parents=True)
        whole = '{"state": "finished", "settings": {}, "reason": "", "run": "%s"}'
        wrong = ("{", "[]", '{"state": "odd"}', '{"state": "finished"}', whole % "../b")
        for content in wrong:
            (one.folder / ENDING).write_text(content)
            with pytest.raises(RunError, match="does not say how the job ended"):
                condition(one)

    def test_an_ending_holds_no_secrets(self):
        one = job(
            'name = "a"\nscorers = [{ plugin = "llm_judge", name = "judge" }]\n'
            '[job.scorer.judge]\nendpoint = "http://127.0.0.1:1"\nmodel = "m"\n'
            'extra_body = { api_key = "hush-hush-hush" }'
        )
        one.folder.mkdir(parents=True)

        def fails(_: Settings) -> int:
            raise ExportError("The key hush-hush-hush was refused.")

        with pytest.raises(ExportError):
            do(one, fails)
        text = (one.folder / ENDING).read_text()
        assert "hush-hush-hush" not in text
        assert json.loads(text)["state"] == "failed"
        assert condition(one).state == "failed"


def test_the_command_has_no_other_name_for_a_job():
    """The batch calls itself by these options."""
    names = {name for parameter in command.params for name in parameter.opts}
    assert {"--job", "--check", "--retry"} <= names


def test_a_storage_that_cannot_be_used_is_told_before_any_job():
    with pytest.raises(SettingsError, match="storage is not the address"):
        check_start(job("name = 'a'\nstorage = 'mongodb://host/db'"))
