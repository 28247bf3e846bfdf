"""`reproduce.json` holds all that is needed to make the same files again, and no secrets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny
from tests.support.data_sets import only
from tests.support.search_case import Recorder
from torch import Tensor

from heretic import pipeline, prompts
from heretic.config import Settings
from heretic.config.schema import reproducible_names
from heretic.config.tables import is_own_plugin
from heretic.errors import ExportError
from heretic.events import Reporter, Silent
from heretic.export.documents.places import shortened
from heretic.export.documents.reproduction import (
    REPRODUCTION_SCHEMA,
    Reproduction,
    differences,
    directions_hash,
    without_secrets,
)
from heretic.export.files import sha256_file
from heretic.export.reproduce import check_plugins, reproduce, restored_settings
from heretic.export.request import ExportRequest
from heretic.export.safetensors import stream
from heretic.export.saving import save
from heretic.method.directions import difference_directions
from heretic.model import Model


def prepare(
    settings: Settings, seed: int, reporter: Reporter, date: datetime | None = None
) -> tuple[Model, Tensor]:
    """The pipeline's stages up to the directions."""
    model = Model(settings, reporter)
    model.renderer.date = date or model.renderer.date
    good, bad = (
        model.get_residual_means(prompts.load(spec, settings.system_prompt))
        for spec in (settings.good_prompts, settings.bad_prompts)
    )
    return model, difference_directions(good, bad, orthogonalize=settings.orthogonalize_direction)


Export = Callable[..., tuple[Path, ExportRequest]]


def make_export(root: Path, strategy: str = "merge", **values: Any) -> tuple[Path, ExportRequest]:
    """An export of a tiny model, with directions from prompts."""
    base = tiny.folder(root / "Tiny-Base")
    settings = export_case.settings(base, **export_case.prompt_files(root), **values)
    model, directions = prepare(settings, 7, Silent())
    wanted = export_case.request(settings, directions=directions)
    return save(model, wanted, root / "first", strategy=strategy), wanted


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportRequest]:
    return make_export(tmp_path_factory.mktemp("original"))


@pytest.fixture
def exported(
    tmp_path: Path, original: tuple[Path, ExportRequest], monkeypatch: pytest.MonkeyPatch
) -> Export:
    """Gives an export that the test may spoil; made anew only where it has to differ.

    The working directory is where model and prompts lie that it was made from.
    """
    monkeypatch.chdir(original[0].parent)

    def give(strategy: str = "merge", **values: Any) -> tuple[Path, ExportRequest]:
        if strategy != "merge" or values:
            return make_export(tmp_path, strategy, **values)
        folder, wanted = original
        return shutil.copytree(folder, tmp_path / "first"), wanted

    return give


def edit_file(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "reproduce.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_the_same_files_come_out(exported: Export, strategy: str, tmp_path: Path) -> None:
    folder, _ = exported(strategy)
    recorder = Recorder()
    outcome = reproduce(
        folder / "reproduce.json", tmp_path / "second", prepare=prepare, reporter=recorder
    )
    assert outcome.identical
    assert outcome.same_directions
    assert outcome.changes == ()
    assert recorder.notices("success") == [outcome.summary()]
    assert recorder.notices("warning") == []
    for name in outcome.matching:
        assert sha256_file(folder / name) == sha256_file(tmp_path / "second" / name)
    first = json.loads((folder / "reproduce.json").read_text())
    second = json.loads((tmp_path / "second" / "reproduce.json").read_text())
    assert "Nothing was measured again" in (tmp_path / "second" / "README.md").read_text()
    assert first == second  # so the copy can be reproduced in turn, with its scores


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_a_searched_model_is_made_again(strategy: str, tmp_path: Path) -> None:
    settings = export_case.settings(
        tiny.folder(tmp_path / "Tiny-Base"),
        **export_case.prompt_files(tmp_path),
        batch_size=0,
        response_prefix="auto",
        search="tpe",
        n_trials=2,
        study_checkpoint_dir=str(tmp_path / "runs"),
    )
    prompts = pipeline.load_prompts(settings, Silent())
    folder, seed = pipeline.open_folder(settings, prompts)
    with folder.lock():
        session = pipeline.prepare(settings, prompts, folder, seed, Silent())
        trial = pipeline.search(session)[0]
        saved = pipeline.export_trial(session, trial, tmp_path / "first", strategy).saved
    scores = tuple(replace(score, values=()) for score in saved)  # files hold no values per prompt
    recorded = Reproduction.read(tmp_path / "first" / "reproduce.json")
    assert recorded.after == scores
    assert recorded.verified
    assert recorded.seed == seed
    outcome = reproduce(
        tmp_path / "first",
        tmp_path / "second",
        prepare=pipeline.prepare_directions,
        reporter=Silent(),
    )
    assert outcome.identical, outcome.summary()
    assert outcome.same_directions
    assert Reproduction.read(tmp_path / "second" / "reproduce.json").after == scores


def test_the_environment_has_no_say(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = exported()
    monkeypatch.setenv("HERETIC_ORTHOGONALIZE_DIRECTION", "false")
    monkeypatch.setenv("HERETIC_GOOD_PROMPTS__SPLIT", "train[:3]")
    outcome = reproduce(folder, tmp_path / "second", prepare=prepare, reporter=Silent())
    assert outcome.identical


def test_other_weights_are_noticed(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported()

    def other_prompts(data: dict[str, Any]) -> None:
        data["settings"]["bad_prompts"]["split"] = "train[:5]"

    file = edit_file(folder, other_prompts)
    recorder = Recorder()
    outcome = reproduce(file, tmp_path / "second", prepare=prepare, reporter=recorder)
    assert not outcome.identical
    assert not outcome.same_directions
    assert outcome.differing == ("model.safetensors",)
    assert "Not identical: model.safetensors" in recorder.notices("warning")[-1]
    assert "This copy was not scored" in recorder.notices("warning")[-1]
    card = (tmp_path / "second" / "README.md").read_text()
    assert "No scores were measured" in card  # the file's scores are not this model's


def test_shards_that_are_cut_otherwise_are_noticed(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = exported()
    monkeypatch.setattr(stream, "source_of", lambda model: None)  # as if there were no files
    file = edit_file(folder, lambda data: data.update(max_shard_size="40KB"))
    outcome = reproduce(file, tmp_path / "second", prepare=prepare, reporter=Silent())
    assert not outcome.identical
    assert "model.safetensors" in outcome.differing
    assert len(outcome.differing) > 1


def test_other_versions_are_said_before_the_work(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported()
    file = edit_file(folder, lambda data: data["versions"].update(torch="1.0.0", oddity="3"))
    recorder = Recorder()

    def stop(
        settings: Settings, seed: int, reporter: Reporter, date: datetime | None = None
    ) -> tuple[Model, Tensor]:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reproduce(file, tmp_path / "second", prepare=stop, reporter=recorder)
    (warning,) = recorder.notices("warning")
    assert f"torch 1.0.0 -> {torch.__version__}" in warning
    assert "oddity 3 -> absent" in warning


def test_what_was_found_at_run_time_is_pinned(exported: Export) -> None:
    folder, _ = exported()

    def found(data: dict[str, Any]) -> None:
        data["found"] = {"batch_size": 3, "dtype": "float16", "response_prefix": "<x>"}

    recorded = Reproduction.read(edit_file(folder, found))
    settings = restored_settings(recorded, {})
    assert settings.batch_size == 3
    assert settings.dtypes == ("float16",)
    assert settings.response_prefix == "<x>"
    assert settings.seed == 7


def test_the_file_says_where_its_numbers_come_from(exported: Export) -> None:
    folder, wanted = exported()
    data = json.loads((folder / "reproduce.json").read_text())
    assert data["schema_version"] == REPRODUCTION_SCHEMA
    assert data["seed"] == 7
    assert data["plan"] == wanted.trial.plan.to_dict()
    assert data["directions_sha256"] == directions_hash(wanted.directions)
    weights = data["files"]["model.safetensors"]
    assert weights["sha256"] == sha256_file(folder / "model.safetensors")
    assert weights["size"] == (folder / "model.safetensors").stat().st_size
    assert data["versions"]["torch"] == torch.__version__
    assert data["hardware"]["processor"]
    assert data["hardware"]["threads"] == torch.get_num_threads()


def test_no_secrets_actions_or_places(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported(
        scorers=[{"plugin": "heretic.scorers.keyword:KeywordRefusals", "name": "refusals"}],
        scorer={"refusals": {"api_key": "sk-123", "hf_token": "hf_123", "marker": "keyboard"}},
        save_directory=str(tmp_path / "somewhere"),
        study_checkpoint_dir=str(tmp_path / "runs"),
        upload_repo_id="me/mine",
        trust_remote_code=True,
    )
    text = (folder / "reproduce.json").read_text()
    for private in ("sk-123", "hf_123", "somewhere", "me/mine", "trust_remote_code", "checkpoint"):
        assert private not in text
    settings = json.loads(text)["settings"]
    assert settings["scorer"] == {"refusals": {"marker": "keyboard"}}
    assert settings.keys() <= reproducible_names()


def test_secrets_are_dropped_at_any_depth() -> None:
    given = {"a": [{"password": "x", "keep": 1}], "openai_api_key": "y", "max_tokens_each": 5}
    assert without_secrets(given) == {"a": [{"keep": 1}], "max_tokens_each": 5}


@pytest.mark.parametrize(
    "name", ["trust_remote_code", "save_directory", "study_checkpoint_dir", "n_trials", "nonsense"]
)
def test_a_file_cannot_set_what_is_the_users(exported: Export, name: str, tmp_path: Path) -> None:
    folder, _ = exported()
    file = edit_file(folder, lambda data: data["settings"].update({name: True}))
    with pytest.raises(ExportError, match=f"cannot set {name}"):
        reproduce(file, tmp_path / "second", prepare=prepare, reporter=Silent())
    assert not (tmp_path / "second").exists()


def test_the_user_can(exported: Export) -> None:
    folder, _ = exported()
    recorded = Reproduction.read(folder / "reproduce.json")
    assert not restored_settings(recorded, {}).trust_remote_code
    settings = restored_settings(recorded, {"trust_remote_code": True, "model": "org/copy"})
    assert settings.trust_remote_code
    assert settings.model == "org/copy"
    moved = restored_settings(recorded, {"good_prompts": {"dataset": "org/prompts"}})
    assert only(moved.good_prompts).dataset == "org/prompts"
    assert only(moved.good_prompts).split == recorded.settings["good_prompts"]["split"]


@pytest.mark.parametrize(
    ("plugin", "own"),
    [
        ("heretic.scorers.keyword:KeywordRefusals", True),
        ("os:system", False),
        ("evil.py:Scorer", False),
        ("heretic.scorers.py:Scorer", False),
        ("heretic.scorers/../evil.py:Scorer", False),
        ("heretic_evil.scorers.keyword:Scorer", False),
        ("heretic.scorers.keyword:Scorer:x", False),
        ("heretic.cli.main:main", False),
        ("", False),
    ],
)
def test_foreign_plugins_are_known(plugin: str, own: bool) -> None:
    assert is_own_plugin(plugin) == own


def test_foreign_plugins_run_only_when_trusted(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported()
    evil = {"plugin": "/srv/evil.py:Scorer", "optimization": "minimize", "name": "evil"}
    file = edit_file(folder, lambda data: data["settings"]["scorers"].append(evil))

    def never(
        settings: Settings, seed: int, reporter: Reporter, date: datetime | None = None
    ) -> tuple[Model, Tensor]:
        raise AssertionError("no work before consent")

    with pytest.raises(ExportError, match=r"outside Heretic: /srv/evil\.py:Scorer") as caught:
        reproduce(file, tmp_path / "second", prepare=never, reporter=Silent())
    assert "--trust-plugins" in (caught.value.remedy or "")
    check_plugins(Reproduction.read(file).settings, "file", trust_plugins=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a reproduction file"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "damaged"),
        (None, "does not exist"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "reproduce.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ExportError, match=message) as caught:
        Reproduction.read(file)
    assert str(file) in str(caught.value)


def test_malformed_settings_are_the_files_fault(exported: Export) -> None:
    folder, _ = exported()
    file = edit_file(folder, lambda data: data["settings"].update(row_normalization="sideways"))
    with pytest.raises(ExportError, match="row_normalization"):
        restored_settings(Reproduction.read(file), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["settings"].update(scorers=None), "not a list"),
        (lambda data: data["settings"].update(scorers='[{"plugin": "os:system"}]'), "not a list"),
        (lambda data: data["found"].pop("dtype"), "dtype"),
        (lambda data: data["plan"].pop("kernels"), "damaged"),
        (lambda data: data.update(strategy="gguf"), "gguf"),
        (lambda data: data.update(seed=float("nan")), "seed is nan"),
        (lambda data: data.update(seed=2**64), "seed is 1844"),
        (lambda data: data.update(seed=1.5), "seed is 1.5"),
        (lambda data: data.update(trial=True), "trial is True"),
        (lambda data: data["plan"].update(rank=10**400), "digits"),
        (lambda data: data["plan"].update(rank="1"), "rank"),
        (lambda data: data["scores"]["after"][0].update(interval=[0.5]), "interval"),
        (lambda data: data["scores"]["after"][0].update(interval=[0, float("inf")]), "inf"),
        (lambda data: data["scores"].update(verified="yes"), "scores.verified"),
        (lambda data: data["found"].update(batch_size=10**30), "batch_size"),
        (lambda data: data["found"].update(batch_size=[4]), "batch_size"),
        (lambda data: data.update(files={"a": 1}), "files.a"),
        (lambda data: data.update(schema_version=True), "not a reproduction file"),
    ],
)
def test_damage_is_an_error_not_a_crash(
    exported: Export, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder, _ = exported()
    file = edit_file(folder, change)
    with pytest.raises(ExportError, match=message):
        reproduce(file, tmp_path / "second", prepare=prepare, reporter=Silent())


def test_the_destination_is_checked_before_the_work(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("x")

    def never(
        settings: Settings, seed: int, reporter: Reporter, date: datetime | None = None
    ) -> tuple[Model, Tensor]:
        raise AssertionError("no work for nothing")

    with pytest.raises(ExportError, match="not empty"):
        reproduce(folder, tmp_path / "taken", prepare=never, reporter=Silent())


def test_the_hash_of_directions_sees_every_bit() -> None:
    directions = export_case.directions()
    assert directions_hash(directions) == directions_hash(directions.double())
    changed = directions.clone()
    changed[1, 0] = torch.nextafter(changed[1, 0], torch.tensor(2.0))
    assert directions_hash(changed) != directions_hash(directions)


def test_differences_name_both_sides() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b 2 -> 3", "c absent -> 4"]


def test_no_path_of_this_machine_is_written(exported: Export, tmp_path: Path) -> None:
    folder, _ = exported("adapter")
    for path in folder.iterdir():
        local = path.name == "adapter_config.json"  # PEFT finds the base by it, on this machine
        assert local or str(tmp_path).encode() not in path.read_bytes(), path.name
    recorded = Reproduction.read(folder / "reproduce.json")
    assert recorded.settings["model"] == "Tiny-Base"
    assert recorded.settings["bad_prompts"]["dataset"] == "bad.txt"
    assert recorded.places["model"].startswith("sha256:")
    digest = sha256_file(tmp_path / "bad.txt")
    assert recorded.places["bad_prompts.dataset"] == f"sha256:{digest}"


@pytest.mark.parametrize("change", ["gone", "other content"])
def test_local_files_that_are_not_there_are_named_with_the_options(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_export(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("Tiny-Base", "bad.txt"):
        shutil.move(tmp_path / "there" / name, tmp_path / "elsewhere" / name)
    if change == "other content":
        tiny.folder(tmp_path / "there" / "Tiny-Base", seed=5)
        (tmp_path / "bad.txt").write_text("other words")
    with pytest.raises(
        ExportError, match=r"model Tiny-Base, bad_prompts\.dataset bad\.txt"
    ) as caught:
        reproduce(folder, tmp_path / "second", prepare=prepare, reporter=Silent())
    assert "--model PATH --bad-prompts.dataset PATH" in (caught.value.remedy or "")
    assert not (tmp_path / "second").exists()
    overrides = {
        "model": str(tmp_path / "elsewhere" / "Tiny-Base"),
        "bad_prompts": {"dataset": str(tmp_path / "elsewhere" / "bad.txt")},
        "bad_evaluation_prompts": {"dataset": str(tmp_path / "elsewhere" / "bad.txt")},
    }
    outcome = reproduce(
        folder, tmp_path / "second", prepare=prepare, reporter=Silent(), overrides=overrides
    )
    assert outcome.identical


def test_whole_paths_of_earlier_releases_are_taken(exported: Export, tmp_path: Path) -> None:
    folder, wanted = exported()

    def as_before(data: dict[str, Any]) -> None:
        del data["places"]
        data["settings"] = {
            name: wanted.settings[name] for name in data["settings"] if name in wanted.settings
        }

    edit_file(folder, as_before)
    assert reproduce(folder, tmp_path / "second", prepare=prepare, reporter=Silent()).identical


def test_texts_that_look_like_paths_stay() -> None:
    given = {
        "system_prompt": "/a/b/c",
        "model": "org/name",
        "scorers": [{"plugin": "/home/me/own.py:Mine"}, {"plugin": "heretic.scorers.x:Y"}],
        "good_prompts": {"dataset": "/home/me/good.txt", "prefix": "/a/b/c"},
    }
    assert shortened(given) == {
        **given,
        "scorers": [{"plugin": "own.py:Mine"}, {"plugin": "heretic.scorers.x:Y"}],
        "good_prompts": {"dataset": "good.txt", "prefix": "/a/b/c"},
    }


def test_a_byte_order_mark_is_no_part_of_a_reproduction_file(exported: Export) -> None:
    folder, _ = exported()
    file = folder / "reproduce.json"
    plain = Reproduction.read(file)
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert Reproduction.read(file) == plain
