"""A damaged run folder, by the command: what can be computed again is, the rest is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.support.damage import flipped

from heretic.errors import RunError
from heretic.main import run
from heretic.pipeline import compute_directions
from heretic.runs.folder import RunFolder

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
N_TRIALS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this release, and the model and prompts that it needs."""
    place = tmp_path_factory.mktemp("made") / "place"
    shutil.copytree(EARLIER, place)
    shutil.rmtree(place / "checkpoints")
    config = place / "config.toml"
    config.write_text(
        'search = "ablation"\n' + config.read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert search(N_TRIALS) == 0
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder in a copy, which is the working directory."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    (found,) = Path("checkpoints").iterdir()
    return found


def search(n_trials: int, *options: str) -> int:
    """`heretic`, without a question."""
    return run(["--n-trials", str(n_trials), "--model-action", "none", *options])


def damage(path: Path) -> None:
    """Change the last but two of its bytes."""
    data = path.read_bytes()
    path.write_bytes(flipped(len(data) - 3, 0x04)(data))


def proposed(folder: Path) -> list[object]:
    return [trial.plan for trial in RunFolder(folder).read_trials()]


@pytest.fixture(scope="module")
def expected(made: Path) -> list[object]:
    """The plans of the run if nothing is damaged, with one trial more."""
    copy = made.parent / "expected"
    shutil.copytree(made, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        assert search(N_TRIALS + 1) == 0
        (found,) = Path("checkpoints").iterdir()
        return proposed(found)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("directions.safetensors", "They are computed again"),
        ("baseline.safetensors", ""),
    ],
)
@pytest.mark.parametrize("gone", [False, True])
def test_what_comes_out_the_same_is_computed_again(folder, expected, capsys, name, said, gone):
    path = folder / name
    before = path.read_bytes()
    if gone:
        path.unlink()
    else:
        damage(path)
    assert search(N_TRIALS + 1) == 0
    assert said in capsys.readouterr().out
    if name.startswith("directions"):
        assert path.read_bytes() == before
    RunFolder(folder).check_recorded(name)
    assert proposed(folder) == expected


def test_a_missing_sweep_is_made_again(folder, expected, capsys):
    before = (folder / "sweep.json").read_bytes()
    (folder / "sweep.json").unlink()
    assert search(N_TRIALS + 1) == 0
    assert "sweep.json is gone: the gradient sweep is made again" in capsys.readouterr().out
    assert (folder / "sweep.json").read_bytes() == before
    assert proposed(folder) == expected


def test_a_sweep_that_cannot_be_made_again_is_not_replaced_by_another_method(
    folder, expected, monkeypatch
):
    (folder / "sweep.json").unlink()
    monkeypatch.setattr("heretic.search.beginning.sweep_plans", lambda *_, **__: [])
    with pytest.raises(RunError, match="gives other plans"):
        search(N_TRIALS + 1)
    assert proposed(folder) == expected[:N_TRIALS]


def test_directions_that_come_out_differently_are_refused(folder, monkeypatch):
    damage(folder / "directions.safetensors")
    monkeypatch.setattr(
        "heretic.pipeline.known.compute_directions", lambda *given: -compute_directions(*given)
    )
    with pytest.raises(RunError, match=r"directions\.safetensors: its content is not what"):
        search(N_TRIALS + 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [("sweep.json", "sweep.json"), ("trials.journal", "damaged"), ("manifest.json", "manifest")],
)
def test_the_rest_is_said_and_the_remedy_works(folder, name, said):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(flipped(len(data) // 2, 0x01)(data))
    with pytest.raises(RunError, match=f"{said}.*checkpoint_action = restart"):
        search(N_TRIALS)
    assert search(1, "--checkpoint-action", "restart") == 0
    assert len(proposed(folder)) == 1


def test_a_damaged_run_is_not_exported(folder):
    save = ["--model-action", "save", "--save-directory", "out", "--trial-index", "0"]
    journal = folder / "trials.journal"
    data = journal.read_bytes()
    journal.write_bytes(flipped(data.index(b'"heretic_trial"') + 90, 0x01)(data))
    with pytest.raises(RunError, match="is damaged in line"):
        run(["export", str(folder), *save])
    assert not Path("out").exists()


class TestEarlierRun:
    @pytest.fixture
    def earlier(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        shutil.copytree(EARLIER, tmp_path / "copy")
        monkeypatch.chdir(tmp_path / "copy")
        (found,) = Path("checkpoints").iterdir()
        return found

    def test_says_once_that_it_has_no_checksums(self, earlier, capsys):
        assert search(7) == 0
        assert capsys.readouterr().out.count("kept no checksums") == 1
        assert "checksum" in json.loads((earlier / "manifest.json").read_text())
        assert search(8) == 0
        assert "kept no checksums" not in capsys.readouterr().out

    def test_a_missing_sweep_is_made_again(self, earlier):
        before = (earlier / "sweep.json").read_bytes()
        (earlier / "sweep.json").unlink()
        assert search(7) == 0
        assert (earlier / "sweep.json").read_bytes() == before
