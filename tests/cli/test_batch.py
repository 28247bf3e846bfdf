"""What `heretic batch` prints: the table at several widths, and what is wrong with a file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.batch_case import load, write
from tests.support.run_case import make_run
from tests.support.terminal import written

from heretic.batch.file import OWNER
from heretic.batch.job import LOG, Condition, Job
from heretic.batch.owner import claim
from heretic.batch.progress import progress
from heretic.batch.summary import JobSummary, write_report
from heretic.cli.display.batch import BatchDisplay, show_summary
from heretic.cli.main import main
from heretic.events import SearchStarted, StageStarted, TrialStarted
from heretic.records.trial import Score
from heretic.report.page.run import read_run
from heretic.runs.events import recording_to

DEFAULTS = "[defaults]\nmodel = 'org/m'\nn_trials = 200\n"
NAMES = ("llama-3.1-8b-instruct", "b", "red")


@pytest.fixture
def summaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[JobSummary]:
    """Three jobs with figures as wide as they come, and one that has not begun."""
    monkeypatch.chdir(tmp_path)
    (job,) = load(write(Path("night.toml"), 'name = "a"', defaults=DEFAULTS))
    run = read_run(make_run(tmp_path / "run").path)
    scores = (
        Score("refusals", 0.97, "minimize", "97/100 (2 partial, 4 broken)", interval=(0.92, 0.991)),
        Score("kl_divergence", 0.1234, "minimize", "0.1234"),
    )
    chosen = replace(run.front[0], scores=scores)
    conditions = (Condition("finished"), Condition("unfinished"), Condition("failed", "No room."))
    done = [
        JobSummary(Job(name, job.folder, job.settings), state, run, 36999.0, scores[0], chosen)
        for name, state in zip(NAMES, conditions, strict=True)
    ]
    return [*done, JobSummary(replace(job, name="later"), Condition("waiting"))]


def shown(found: list[JobSummary], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show_summary(console, found)
    return written(console).splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_fits_and_names_all(summaries: list[JobSummary], width: int):
    lines = shown(summaries, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in (NAMES[0], "later", "3/200", "97/100", "0.1234", "10h 16m", "unfinished"):
        assert name in text
    assert ("[0.92, 0.99]" in text) == (width > 60)
    assert "partial" not in text
    assert "red: No room." in text


def test_a_row_has_its_name_beside_it_where_there_is_room(summaries: list[JobSummary]):
    wide, narrow = shown(summaries, 100), shown(summaries, 80)
    assert wide[1].startswith(f"{NAMES[0]}  finished")
    assert narrow[1] == NAMES[0]
    assert narrow[2].startswith("  finished")
    short = [replace(one, job=replace(one.job, name=f"job-{n}")) for n, one in enumerate(summaries)]
    assert shown(short, 80)[1].startswith("job-0  finished")


def test_columns_are_named_after_the_objectives_that_all_jobs_have(summaries: list[JobSummary]):
    assert shown(summaries, 100)[0].split()[4:] == ["refusals", "KL", "time"]
    first = summaries[0]
    assert first.chosen is not None
    scores = (Score("jokes", 0.5, "maximize", "5/10"), *first.chosen.scores[1:])
    other = replace(first, chosen=replace(first.chosen, scores=scores))
    assert shown([other, *summaries], 120)[0].split()[4:] == ["first", "KL", "time"]


def test_the_page_names_the_jobs_that_have_finished(summaries: list[JobSummary], tmp_path: Path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    again = replace(summaries[0], job=replace(summaries[0].job, name="again-and-again"))
    path = write_report([*summaries, again], tmp_path)
    assert path is not None
    page = path.read_text(encoding="utf-8")
    assert NAMES[0] in page
    assert "again-and-again" in page
    assert "later" not in page
    assert write_report(summaries[1:], tmp_path) is None


def test_how_far_a_job_has_come_is_read_from_its_events(tmp_path: Path):
    assert progress(tmp_path) == ""
    (tmp_path / "run").mkdir()
    with recording_to(tmp_path / "run" / "events.jsonl") as events:
        assert progress(tmp_path) == ""
        events.emit(StageStarted("Loading model"))
        assert progress(tmp_path) == "Loading model"
        events.emit(SearchStarted(0, 9, ()))
        events.emit(TrialStarted(3, 3, 9))
        assert progress(tmp_path) == "trials 3 of 9"
        with (tmp_path / "run" / "events.jsonl").open("ab") as file:
            file.write(b'{"at": "2026-')
        assert progress(tmp_path) == "trials 3 of 9"


def test_a_job_that_was_waited_for_and_then_started_counts_once(summaries: list[JobSummary]):
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    display = BatchDisplay(console, 2)
    first, second = summaries[0].job, summaries[1].job
    display.found_running(first)
    display.started(second)
    display.started(first)
    display.ended(first, 2)
    lines = written(console).splitlines()
    assert [line[:5] for line in lines[:3]] == ["[1/2]", "[2/2]", "[1/2]"]
    assert lines[3].endswith(f"; see {first.folder / LOG}")


class TestRefusals:
    """What is wrong is told of all jobs at once, and nothing is started or made."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_settings(self, capsys: pytest.CaptureFixture[str]):
        saving = 'model_action = "save"'
        file = write(
            Path("night.toml"),
            'name = "fine"',
            'name = "talks"\nmodel_action = "chat"',
            f'name = "lacks"\n{saving}\ntrial_index = "knee"',
            'name = "odd"\nworker_mode = "perhaps"',
            *(
                f'name = "{name}"\n{saving}\ntrial_index = 0\nexport_strategy = "merge"\n'
                'save_directory = "x"'
                for name in ("here", "there")
            ),
            defaults=DEFAULTS,
        )
        assert main(["batch", str(file)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "talks: model_action is chat" in err
        assert "lacks: model_action is save, which also needs export_strategy." in err
        assert "odd: Setting worker_mode in job odd of night.toml" in err
        assert "there: It saves to" in err
        assert "fine:" not in err
        assert err.endswith("Error: 4 jobs of night.toml cannot be run; none was started.\n")
        assert not Path("checkpoints").exists()

    def test_consent_of_a_file_that_lies_there(self, capsys: pytest.CaptureFixture[str]):
        Path(".env").write_text("HERETIC_TRUST_REMOTE_CODE=true")
        file = write(Path("night.toml"), 'name = "a"', defaults=DEFAULTS)
        assert main(["batch", str(file)]) == 2
        assert "a: HERETIC_TRUST_REMOTE_CODE in .env would let code" in capsys.readouterr().err

    def test_what_a_start_would_find(self, capsys: pytest.CaptureFixture[str]):
        file = write(
            Path("night.toml"), 'name = "a"', 'name = "b"\nmodel = "./b"', defaults=DEFAULTS
        )
        assert main(["batch", str(file), "--check"]) == 2
        err = capsys.readouterr().err
        assert "a: org/m is not on this machine" in err
        assert "b: " in err
        assert not Path("checkpoints").exists()

    @pytest.mark.parametrize("option", [[], ["--check"], ["--job", "a"]])
    def test_the_folder_of_another_file_of_the_name(
        self, option: list[str], capsys: pytest.CaptureFixture[str]
    ):
        for name in ("first", "second"):
            Path(name).mkdir()
            write(Path(name, "night.toml"), 'name = "a"', defaults=DEFAULTS)
        folder = Path("checkpoints/night")
        folder.mkdir(parents=True)
        claim(Path("first/night.toml"), folder)
        assert main(["batch", "second/night.toml", *option]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "which has the same name as second/night.toml. Rename one" in err
        assert [path.name for path in folder.iterdir()] == [OWNER]

    def test_a_job_that_is_not_there(self, capsys: pytest.CaptureFixture[str]):
        file = write(Path("night.toml"), 'name = "a"', defaults=DEFAULTS)
        assert main(["batch", str(file), "--job", "c"]) == 2
        assert "There is no job c in night.toml. There are a." in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["a", "b"])
    def test_one_job_that_saves_where_another_does(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ):
        saving = 'model_action = "save"\ntrial_index = 0\nexport_strategy = "merge"'
        tables = [f'name = "{one}"\n{saving}\nsave_directory = "x"' for one in "ab"]
        broken = 'name = "c"\nworker_mode = "perhaps"'
        file = write(Path("night.toml"), *tables, broken, defaults=DEFAULTS)
        assert main(["batch", str(file), "--job", name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{name}: It saves to" in err
        assert f"and so does job {'ab'.replace(name, '')}" in err
        assert not Path("checkpoints").exists()

    @pytest.mark.parametrize("other", [["--check"], ["--json"], ["--at-once", "2"]])
    def test_one_job_takes_no_option_of_all(
        self, other: list[str], capsys: pytest.CaptureFixture[str]
    ):
        file = write(Path("night.toml"), 'name = "a"', defaults=DEFAULTS)
        assert main(["batch", str(file), "--job", "a", *other]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "--job runs one job" in err
