"""What a batch file may say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.batch.file import read_batch
from heretic.errors import SettingsError


def written(folder: Path, text: str) -> Path:
    path = folder / "night.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_job_has_the_defaults_and_what_its_table_changes(tmp_path: Path):
    text = """
    [defaults]
    n_trials = 10
    good_prompts = { dataset = "a.txt", split = "train[:5]" }
    [[job]]
    name = "one"
    model = "org/one"
    [[job]]
    name = "two"
    model = "org/two"
    n_trials = 20
    good_prompts = { split = "train[:9]" }
    """
    one, two = read_batch(written(tmp_path, text))
    prompts = {"dataset": "a.txt", "split": "train[:5]"}
    assert one.values == {"n_trials": 10, "good_prompts": prompts, "model": "org/one"}
    changed = {**prompts, "split": "train[:9]"}
    assert two.values == {"n_trials": 20, "good_prompts": changed, "model": "org/two"}
    assert (one.name, two.name) == ("one", "two")


def test_values_of_the_matrix_are_multiplied_and_name_the_jobs(tmp_path: Path):
    text = """
    [matrix]
    model = ["org/a", "org/b"]
    racing = [true, false]
    [[job]]
    name = "x"
    """
    jobs = read_batch(written(tmp_path, text))
    names = ["x-org--a-true", "x-org--a-false", "x-org--b-true", "x-org--b-false"]
    assert [job.name for job in jobs] == names
    assert jobs[1].values == {"model": "org/a", "racing": False}


def test_the_example_of_the_documents_is_a_batch(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    example = text.partition('<a name="batch">')[2].partition("```toml\n")[2].partition("```")[0]
    jobs = read_batch(written(tmp_path, example))
    assert [job.name for job in jobs] == ["small-1", "small-2", "large-1", "large-2"]


def test_a_matrix_is_enough(tmp_path: Path):
    text = """
    [defaults]
    model = "m"
    [matrix]
    seed = [1, 2]
    scorers = [[{ plugin = "keyword" }], [{ plugin = "refusal" }]]
    """
    jobs = read_batch(written(tmp_path, text))
    assert [job.name for job in jobs] == ["1-1", "1-2", "2-1", "2-2"]
    assert [job.values["scorers"][0]["plugin"] for job in jobs[:2]] == ["keyword", "refusal"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no [[job]] tables"),
        ("job = 3", "no [[job]] tables"),
        ("n_trials = 3\n[[job]]\nname = 'a'", "the key n_trials"),
        ("defaults = 3\n[[job]]\nname = 'a'", "something else than a table as defaults"),
        ("[[job]]\nmodel = 'm'", "a [[job]] without a name"),
        ("[[job]]\nname = 'a'\nn_trails = 3", "n_trails in job a of"),
        ("[defaults]\nn_trails = 3\n[[job]]\nname = 'a'", "n_trails in [defaults] of"),
        ("[matrix]\nn_trails = [3]", "n_trails in [matrix] of"),
        ("[matrix]\nseed = 3", "no list of values for seed"),
        ("[matrix]\nseed = []", "no list of values for seed"),
        ("[matrix]\nseed = [1]\n[[job]]\nname = 'a'\nseed = 2", "sets seed, and [matrix] does too"),
        ("[[job]]\nname = 'a'\n[[job]]\nname = 'A'", "Two jobs"),
        ("[matrix]\nseed = [1, 1]", "Two jobs"),
        ("[matrix]\nmodel = ['./a b', './a-b']", "write [[job]] tables in place of the matrix"),
        ("[[job]]\nname = '../a'", "cannot be a job's name"),
        ("[[job]]\nname = ''", "cannot be a job's name"),
        ("[[job]]\nname = 'a.'", "cannot be a job's name"),
        ("[[job]]\nname = 'run.lock'", "cannot be a job's name"),
        ("[[job]]\nname = 'batch.json'", "cannot be a job's name"),
        ("[[job]]\nname = 'Report.html'", "cannot be a job's name"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, told: str):
    with pytest.raises(SettingsError) as caught:
        read_batch(written(tmp_path, text))
    assert told in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_not_toml(tmp_path: Path):
    with pytest.raises(SettingsError, match="not valid TOML"):
        read_batch(written(tmp_path, "[[job]"))


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"night\.toml"):
        read_batch(tmp_path / "night.toml")
