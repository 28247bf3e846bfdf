"""Run folders: names, digests, atomic files, locks, versions, listing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.search_case import evaluate, make_study

from heretic.cli.commands import runs as runs_command
from heretic.errors import ExportError, RunError
from heretic.records import Trial, front
from heretic.runs import folder as runs
from heretic.runs.folder import RunFolder, digest, slug
from heretic.runs.journal import read_trials, trial_from_record, trial_to_record
from heretic.runs.listing import find_run, list_runs
from heretic.runs.manifest import SCHEMA_VERSION, RunManifest
from heretic.system.files import write_atomic

FINGERPRINT = {"model": "org/name", "good_prompts": {"split": "train[:400]"}, "markers": ["a", "b"]}


def manifest(model="org/name", seed=1, n_trials=3, **changes) -> RunManifest:
    fields = {
        "model": model,
        "digest": digest({**FINGERPRINT, "seed": seed}),
        "seed": seed,
        "fingerprint": FINGERPRINT,
        "settings": {"n_trials": n_trials},
        "created": "2026-01-02T03:04:05+00:00",
    }
    return RunManifest(**{**fields, **changes})


def make_run(parent: Path, seed=1, trials=0, used: float | None = None, **changes) -> RunFolder:
    described = manifest(seed=seed, **changes)
    folder = RunFolder.open(parent, described.model, described.digest)
    folder.write_manifest(described)
    if trials:
        make_study(folder, seed=seed).run(evaluate, trials)
    if used is not None:
        for path in (folder.path / "manifest.json", folder.journal_path):
            if path.exists():
                os.utime(path, (used, used))
    return folder


class TestNames:
    def test_digest(self):
        assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
        assert digest({"a": 1}) != digest({"a": 2})
        assert digest({"a": {"b": 1}}) != digest({"a": {"b": "1"}})
        assert len(digest({})) == 12
        assert int(digest({"ä": "\ud800"}), 16) >= 0
        # A run must be found again by later releases.
        assert digest({"model": "m", "seed": 1}) == "3447213c37ed"

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("org/name-1.5B_it", "org--name-1.5B_it"),
            ("./folder/my model", "my-model"),
            ("/somewhere/else/model/", "model"),
            ("..", None),
            ("a/../../b", "b"),
            ("日本", "model"),
            ("x" * 200, "x" * 80),
        ],
    )
    def test_slug(self, model, expected):
        name = slug(model)
        assert "/" not in name
        assert not name.startswith(".")
        assert expected is None or name == expected

    def test_folder_is_named_by_model_and_digest(self, tmp_path):
        folder = RunFolder.open(tmp_path, "org/name", "0123456789ab")
        assert folder.path == tmp_path / "org--name-0123456789ab"
        assert folder.digest == "0123456789ab"
        assert not folder.exists
        assert not folder.path.exists()

    def test_a_run_is_found_by_its_digest_when_its_model_was_renamed(self, tmp_path):
        folder = make_run(tmp_path, model="org/name")
        assert RunFolder.open(tmp_path, "org/renamed", folder.digest).path == folder.path
        assert RunFolder.open(tmp_path, "org/renamed", "0" * 12).path != folder.path

    def test_a_local_folder_is_named_by_its_last_part(self, tmp_path, monkeypatch):
        (tmp_path / "models" / "mine").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert slug("models/mine") == "mine"


class TestAtomicWrites:
    def test_replaces_as_a_whole(self, tmp_path):
        path = tmp_path / "file"
        write_atomic(path, "old")
        write_atomic(path, "ünew")
        assert path.read_text(encoding="utf-8") == "ünew"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]

    def test_a_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        write_atomic(path, "old")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            write_atomic(path, "new")
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]

    def test_callers_say_what_to_do(self, tmp_path):
        path = tmp_path / "nowhere" / "file"
        with pytest.raises(RunError) as caught:
            write_atomic(path, "")
        assert "last trial" not in str(caught.value)
        with pytest.raises(ExportError, match=r"Cannot write .*Free some space"):
            write_atomic(path, "", remedy="Free some space.", kind=ExportError)
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match="continues after its last trial"):
            RunFolder(tmp_path / "file" / "run").write_manifest(manifest())

    def test_has_the_usual_permissions(self, tmp_path):
        write_atomic(tmp_path / "atomic", "")
        (tmp_path / "usual").touch()
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "usual")]
        assert modes[0] == modes[1]


class TestManifest:
    def test_round_trip(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        assert folder.read_manifest() is None
        folder.write_manifest(manifest())
        assert folder.exists
        assert folder.read_manifest() == manifest()

    def test_newer_ones_are_refused(self, tmp_path):
        folder = make_run(tmp_path)
        path = folder.path / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
        with pytest.raises(RunError, match=r"schema version 99.*Update Heretic"):
            folder.read_manifest()

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema_version": 1}'])
    def test_damaged_ones_are_said(self, tmp_path, content):
        folder = make_run(tmp_path)
        (folder.path / "manifest.json").write_text(content)
        with pytest.raises(RunError):
            folder.read_manifest()


class TestDirections:
    def test_round_trip_is_exact(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        directions = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
        assert not RunFolder(folder.path).has_directions
        folder.save_directions(directions.T.copy().T)  # not contiguous
        assert folder.has_directions
        loaded = folder.load_directions()
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, directions)

    @pytest.mark.parametrize("content", [None, b"", b"\0" * 64, b"nonsense" * 9])
    def test_damage_is_said(self, tmp_path, content):
        if content is not None:
            (tmp_path / "directions.safetensors").write_bytes(content)
        with pytest.raises(RunError, match="Cannot read"):
            RunFolder(tmp_path).load_directions()


class TestTrials:
    def test_records_survive_json(self, tmp_path):
        folder = make_run(tmp_path, trials=2)
        for trial in [*folder.read_trials(), Trial(3, folder.read_trials()[0].plan, (), "failed")]:
            assert trial_from_record(json.loads(json.dumps(trial_to_record(trial)))) == trial

    @pytest.mark.parametrize(
        "damage", [{"schema_version": SCHEMA_VERSION + 1}, {"plan": {}}, {"scores": [{"x": 1}]}]
    )
    def test_bad_records_are_refused(self, tmp_path, damage):
        record = trial_to_record(make_run(tmp_path, trials=1).read_trials()[0])
        with pytest.raises(RunError):
            trial_from_record({**record, **damage})

    def test_no_journal_no_trials(self, tmp_path):
        assert read_trials(tmp_path / "trials.journal") == []

    def test_reading_passes_over_a_torn_line_and_changes_nothing(self, tmp_path):
        folder = make_run(tmp_path, trials=2)
        with folder.journal_path.open("ab") as file:
            file.write(b'{"op_code":8,"user_attr":{"heretic_trial":{"sch')
        before = folder.journal_path.read_bytes()
        assert len(folder.read_trials()) == 2
        assert folder.journal_path.read_bytes() == before


class TestLock:
    def test_keeps_others_out(self, tmp_path):
        first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
        assert not RunFolder(first.path).is_locked
        with first.lock(), first.lock():
            assert first.is_locked
            assert second.is_locked
            with pytest.raises(RunError, match="Another process"), second.lock():
                pass
        with second.lock():
            assert first.is_locked

    def test_is_let_go_after_an_error(self, tmp_path):
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(ZeroDivisionError), folder.lock():
            _ = 1 / 0
        assert not folder.is_locked

    def test_looking_does_not_make_a_file(self, tmp_path):
        assert not RunFolder(tmp_path).is_locked
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_said(self, tmp_path):
        (tmp_path / "file").touch()
        with (
            pytest.raises(RunError, match="Cannot write"),
            RunFolder(tmp_path / "file" / "x").lock(),
        ):
            pass


class TestDiscard:
    def test_only_what_a_run_wrote_goes(self, tmp_path):
        folder = make_run(tmp_path, trials=1)
        folder.save_directions(np.zeros((2, 2), np.float32))
        folder.baseline_path.write_bytes(b"outputs")
        folder.log_path.write_text("log")
        (folder.path / "my-model").mkdir()
        folder.discard()
        left = {path.name for path in folder.path.iterdir()}
        assert left == {"heretic.log", "run.lock", "my-model"}
        assert not folder.exists
        assert folder.read_trials() == []

    def test_not_while_another_process_has_it(self, tmp_path):
        folder = make_run(tmp_path)
        with RunFolder(folder.path).lock(), pytest.raises(RunError, match="Another process"):
            folder.discard()
        assert folder.exists

    def test_what_is_not_there(self, tmp_path):
        RunFolder(tmp_path / "nothing").discard()
        assert not (tmp_path / "nothing").exists()


class TestFindRun:
    def test_the_latest_with_the_fingerprint(self, tmp_path):
        make_run(tmp_path, seed=1, used=1000.0)
        make_run(tmp_path, seed=2, used=3000.0)
        make_run(tmp_path, seed=3, used=2000.0)
        make_run(tmp_path, model="other", fingerprint={"model": "other"}, used=9000.0)
        found = find_run(tmp_path, FINGERPRINT)
        assert found is not None
        assert found.seed == 2

    def test_none(self, tmp_path):
        assert find_run(tmp_path / "nothing", FINGERPRINT) is None
        folder = make_run(tmp_path)
        assert find_run(tmp_path, {"model": "org/name"}) is None
        (folder.path / "manifest.json").write_text("{")
        assert find_run(tmp_path, FINGERPRINT) is None


class TestListing:
    def test_states(self, tmp_path):
        make_run(tmp_path, seed=1, trials=3, used=4000.0)
        make_run(tmp_path, seed=2, trials=1, used=3000.0)
        make_run(tmp_path, seed=3, used=2000.0)
        damaged = make_run(tmp_path, seed=4, used=1000.0)
        (damaged.path / "manifest.json").write_text("{")
        os.utime(damaged.path / "manifest.json", (1000, 1000))
        (tmp_path / "unrelated").mkdir()
        (tmp_path / "file").touch()
        rows = list_runs(tmp_path)
        states = [(run.state, run.completed, run.n_trials) for run in rows]
        assert states[:3] == [("finished", 3, 3), ("unfinished", 1, 3), ("unfinished", 0, 3)]
        assert rows[3].state == "unreadable"
        assert str(damaged.path) in str(rows[3].note)
        assert rows[0].front == len(front(RunFolder(rows[0].path).read_trials()))
        assert rows[0].updated == "1970-01-01T01:06:40+00:00"

    def test_running(self, tmp_path):
        folder = make_run(tmp_path)
        with folder.lock():
            assert list_runs(tmp_path)[0].state == "running"
        assert list_runs(tmp_path)[0].state == "unfinished"

    def test_nothing(self, tmp_path):
        assert list_runs(tmp_path) == []
        assert list_runs(tmp_path / "nothing") == []


class TestCommand:
    @staticmethod
    def call(*arguments):
        return CliRunner().invoke(
            runs_command.command, list(map(str, arguments)), catch_exceptions=False
        )

    def test_table(self, tmp_path):
        make_run(tmp_path, trials=1)
        damaged = make_run(tmp_path, seed=2, model="[red]odd[/red]", fingerprint={})
        result = self.call("--study-checkpoint-dir", tmp_path)
        assert result.exit_code == 0
        for text in ("org/name", "unfinished", "1 of 3", "[red]odd[/red]"):
            assert text in result.output
        (damaged.path / "manifest.json").write_text("{")
        result = self.call("--study-checkpoint-dir", tmp_path)
        assert "unreadable" in result.output
        assert "Cannot read" in result.output

    def test_json(self, tmp_path):
        folder = make_run(tmp_path, trials=1)
        result = self.call("--study-checkpoint-dir", tmp_path, "--json")
        (row,) = json.loads(result.output)
        assert row["path"] == str(folder.path)
        assert (row["model"], row["state"], row["completed"]) == ("org/name", "unfinished", 1)
        assert row["created"] == "2026-01-02T03:04:05+00:00"

    def test_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert self.call().output == "There are no runs in checkpoints.\n"
        assert json.loads(self.call("--json").output) == []

    def test_place_from_the_settings(self, tmp_path, monkeypatch):
        make_run(tmp_path / "elsewhere")
        monkeypatch.setenv("HERETIC_STUDY_CHECKPOINT_DIR", str(tmp_path / "elsewhere"))
        assert "org/name" in self.call().output


def test_module_says_what_it_writes():
    for name in ("manifest.json", "directions.safetensors", "trials.journal", "front.json"):
        assert name in str(runs.__doc__)
