"""`heretic runs`: every run with its number and its whole folder, however narrow the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runs.test_runs import make_run

from heretic.errors import RunError
from heretic.main import main
from heretic.runs.listing import list_runs, numbers, path_of_run

LONG = "organisation/a-model-with-a-long-name-70B-instruct"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        make_run(tmp_path / "checkpoints", seed=number, model=LONG)
    broken = tmp_path / "checkpoints" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_folders_are_never_cut(
    place: Path,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folders = [line.strip() for line in lines if line.strip().startswith("checkpoints/")]
    runs = list_runs(Path("checkpoints"))
    assert [folder for folder in folders if ":" not in folder] == [str(run.path) for run in runs]
    rows = [line for line in lines if "finished" in line]
    shown = {int(line.split()[0]): line for line in rows}
    assert shown.keys() == numbers(runs).keys() == {1, 2}
    if columns >= 60:
        heading = lines[0]
        assert heading.split()[:5] == ["#", "state", "trials", "failed", "front"]
        assert max(map(len, [heading, *rows])) <= columns
        assert "…" not in "".join(lines)
        assert sum(LONG in line for line in lines) == 2  # the name is whole


def test_a_name_that_is_too_long_keeps_both_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    name = f"organisation/{'very-' * 20}long-name"
    make_run(tmp_path / "checkpoints", seed=1, model=name)
    assert main(["runs"]) == 0
    [line] = [line.strip() for line in capsys.readouterr().out.splitlines() if "…" in line]
    assert len(line) <= 80
    assert line.startswith("organisation/")
    assert line.endswith("long-name")


def test_a_number_or_a_name_stands_for_the_folder(place: Path) -> None:
    there = Path("checkpoints")
    for number, run in numbers(list_runs(there)).items():
        assert path_of_run(str(number), there) == run.path
        assert path_of_run(run.path.name, there) == run.path
        assert path_of_run(str(run.path), there) == run.path
    with pytest.raises(RunError, match="no run 3 in checkpoints: the numbers there are 1 to 2"):
        path_of_run("3", there)
    with pytest.raises(RunError, match=r"no run 1: there are no runs in .*elsewhere"):
        path_of_run("1", place / "elsewhere")
    (place / "3").mkdir()
    assert path_of_run("3", there) == Path("3")  # a folder of that name comes first
    assert path_of_run("org/name", there) == Path("org/name")


@pytest.mark.parametrize("command", ["export", "benchmark", "chat"])
def test_commands_take_numbers(
    place: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "7"]) == 2
    assert "There is no run 7 in checkpoints" in capsys.readouterr().err
    assert main([command, "1"]) == 2
    assert "no run" not in capsys.readouterr().err  # it is found, and is no real one
