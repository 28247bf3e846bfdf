"""`heretic batch FILE`: many runs as one job that can be interrupted and goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsOptions
from heretic.errors import HereticError, RunError, SettingsError
from heretic.system.display import counted, json_text, safe

if TYPE_CHECKING:
    from heretic.batch.file import JobTable
    from heretic.batch.job import Job
    from heretic.batch.summary import JobSummary

DONE, NOT_DONE = 0, 1


@click.command("batch", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--at-once",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    help="Run N jobs at a time; each gets its share of the GPUs, or else of the cores.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Also run jobs that failed, or whose settings have changed since they finished.",
)
@click.option("--check", is_flag=True, help="Check all jobs, and start none.")
@click.option("--job", "only", metavar="NAME", help="Run this job alone, in this process.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, for programs.")
def command(
    file: Path, at_once: int, retry: bool, check: bool, only: str | None, as_json: bool
) -> int:
    """Run the jobs of FILE (TOML), each in a process of its own, and sum them up.

    FILE has a table [defaults] with settings, and [[job]] tables, each with a name and any
    settings; lists of values in [matrix] are multiplied. All jobs are checked before the first
    starts. Interrupted or killed, the same command goes on.

    The exit status is 0 if all jobs have finished, 1 if some have not, 2 if none was started; with
    --check 0 if all can be run, else 2.
    """
    from heretic.batch.file import read_batch

    tables = read_batch(file)
    if only is not None:
        if check or as_json or at_once > 1:
            raise SettingsError(
                "--job runs one job and takes neither --check nor --json nor --at-once.",
                remedy="Leave one of the two out.",
            )
        return _run_one(file, tables, only, retry=retry)
    # What is to be known of files is told once, by the process that checks.
    jobs = _load(file, tables, SettingsOptions().tell if check else lambda _: None, retry=retry)
    if check:
        _refuse(file, {job.name: _problem(job) for job in jobs})
        _sum_up(file, jobs, as_json=as_json, page=False)
        return DONE
    click.echo(f"Checking {counted(len(jobs), 'job')} ...", err=as_json)
    if refused := _checked_elsewhere(file, retry=retry):
        return refused
    cut_short = _run(file, jobs, at_once, retry=retry, as_json=as_json)
    all_finished = _sum_up(file, jobs, as_json=as_json, page=True)
    return cut_short or (DONE if all_finished else NOT_DONE)


def _load(
    file: Path, tables: Sequence[JobTable], tell: Callable[[str], None], *, retry: bool
) -> list[Job]:
    """The jobs; what is wrong with their settings is told of all of them at once."""
    from heretic.batch.job import condition, load_job, shared_places
    from heretic.batch.owner import check_owner

    jobs: list[Job] = []
    problems: dict[str, str] = {}
    for table in tables:
        try:
            job = load_job(file, table, tell)
            _check_answers(job)
            jobs.append(job)
        except HereticError as error:
            problems[table.name] = str(error)
    for job in jobs[:1]:  # all have one folder
        check_owner(file, job.folder.parent)
    for job in jobs:
        try:
            found = condition(job)
        except HereticError as error:
            problems[job.name] = str(error)
            continue
        if found.state == "changed" and not retry:
            problems[job.name] = found.note
    _refuse(file, {**problems, **shared_places(jobs)})
    return jobs


def _refuse(file: Path, problems: dict[str, str]) -> None:
    """Say what is wrong with which jobs; nothing is started then.

    Raises:
        SettingsError: Something is wrong.
    """
    told = {name: problem for name, problem in problems.items() if problem}
    for name, problem in told.items():
        click.echo(safe(f"{name}: {problem}"), err=True)
    if told:
        jobs = counted(len(told), "job")
        raise SettingsError(f"{jobs} of {file} cannot be run; none was started.")


def _check_answers(job: Job) -> None:
    """Refuse a job that would have to ask what to do after its search.

    Raises:
        SettingsError: Settings are missing, or it is to chat.
    """
    from heretic.cli.menu.answers import Answers
    from heretic.records.options import options_of

    action = job.settings.model_action
    if action == "chat":
        raise SettingsError(
            "model_action is chat, and nobody can be asked.",
            remedy="Leave it out; `heretic chat RUN` talks to a run's trials later.",
        )
    if missing := options_of(Answers, job.settings).open_questions():
        raise SettingsError(
            f"model_action is {action}, which also needs {' and '.join(missing)}.",
            remedy="Set it; trial_index takes names, such as knee.",
        )


def _check_places(file: Path, tables: Sequence[JobTable], job: Job) -> None:
    """Refuse a job that saves or uploads where another of the file does.

    Raises:
        SettingsError: So it is.
    """
    from heretic.batch.job import load_job, shared_places

    others: list[Job] = []
    for table in tables:
        with suppress(HereticError):  # what is wrong with another job is no matter of this one
            others += [load_job(file, table, lambda _: None)] if table.name != job.name else []
    if problem := shared_places([*others, job]).get(job.name):
        raise SettingsError(f"{job.name}: {problem}")


def _problem(job: Job) -> str:
    """What would stop a job, found with all that a start looks at; empty if nothing would."""
    from heretic.batch.checks import check_same, check_start
    from heretic.batch.job import condition
    from heretic.cli.display.research import check_research

    look: dict[str, Callable[[Job], None]] = {"finished": check_same, "running": lambda _: None}
    try:
        check_research(job.settings)
        look.get(condition(job).state, check_start)(job)
    except HereticError as error:
        return str(error)
    return ""


def _checked_elsewhere(file: Path, *, retry: bool) -> int:
    """Check all jobs in a process that ends: what it loads is not kept while the jobs run.

    Returns:
        Its exit status. It has said what is wrong.

    Raises:
        HereticError: A signal has ended it.
    """
    from heretic.batch.running import HERETIC

    words = ["batch", "--check", *(["--retry"] if retry else []), "--", str(file)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and program
        [*HERETIC, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode < 0:
        raise HereticError(
            f"Signal {-done.returncode} has ended the check of the jobs; none was started.",
            remedy="If it was signal 9, memory may be short.",
        )
    return done.returncode


def _run(file: Path, jobs: Sequence[Job], at_once: int, *, retry: bool, as_json: bool) -> int:
    """Run the jobs that have not ended; the exit status if not all could be begun, else 0.

    Raises:
        HereticError: None can be begun.
    """
    from heretic.batch.job import condition
    from heretic.batch.owner import claim
    from heretic.batch.running import check_space, places, run_jobs
    from heretic.cli import INTERRUPTED
    from heretic.cli.display.batch import BatchDisplay
    from heretic.cli.display.text import make_console
    from heretic.cli.signals import outlives_terminal
    from heretic.runs.lock import RunLock

    folder = jobs[0].folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder, "Check space and permissions.", "the batch").held(), outlives_terminal():
        left_out = {"finished"} if retry else {"finished", "failed"}
        todo = [job for job in jobs if condition(job).state not in left_out]
        if not todo:
            return 0
        check_space(folder)
        shares = places(min(at_once, len(todo)))
        claim(file, folder)
        display = BatchDisplay(make_console(to_error=as_json), len(todo))
        try:
            with display.shown():
                run_jobs(file, todo, shares, display)
        except KeyboardInterrupt:
            return INTERRUPTED
        except RunError as error:  # what was found before is shown all the same
            click.echo(safe(f"Error: {error}"), err=True)
            return NOT_DONE
    return 0


def _sum_up(file: Path, jobs: Sequence[Job], *, as_json: bool, page: bool) -> bool:
    """Print the summary, and write the page if wanted; returns whether all jobs have finished."""
    from heretic.batch.summary import summaries, write_report

    found = summaries(jobs)
    folder = jobs[0].folder.parent
    path, missing = None, ""
    if page:
        try:
            path = write_report(found, folder)
        except HereticError as error:
            missing = f"No page was written: {error}"
    if as_json:
        told = {"file": str(file), "folder": str(folder), "report": path and str(path)}
        click.echo(json_text({**told, "jobs": [one.to_dict() for one in found]}, indent=2))
        if missing:
            click.echo(safe(missing), err=True)
    else:
        _print(file, found, missing if path is None else f"The page is {path}.", page=page)
    return all(one.condition.state == "finished" for one in found)


def _print(file: Path, found: Sequence[JobSummary], of_page: str, *, page: bool) -> None:
    from rich.text import Text

    from heretic.cli.display.batch import print_goes_on, show_summary
    from heretic.cli.display.text import make_console

    console = make_console()
    console.print()
    show_summary(console, found)
    if of_page:
        console.print(Text(safe(of_page)), soft_wrap=True)
    states = {one.condition.state for one in found}
    if "failed" in states:
        console.print(Text("Failed jobs are run again with --retry."))
    if page and states & {"waiting", "unfinished"}:
        print_goes_on(console, file)


def _run_one(file: Path, tables: Sequence[JobTable], name: str, *, retry: bool) -> int:
    """Do one job in this process, as its batch would; returns the exit status."""
    from heretic.batch.checks import check_same
    from heretic.batch.job import condition, do, load_job
    from heretic.batch.owner import check_owner, claim
    from heretic.cli.workflow import run_of_settings

    started = perf_counter()
    table = next((table for table in tables if table.name == name), None)
    if table is None:
        known = ", ".join(table.name for table in tables)
        raise SettingsError(f"There is no job {name} in {file}.", remedy=f"There are {known}.")
    job = load_job(file, table, SettingsOptions().tell)
    _check_answers(job)
    check_owner(file, job.folder.parent)
    _check_places(file, tables, job)
    found = condition(job)
    if found.state == "finished":
        check_same(job)
    if found.state == "finished" or (found.state in ("failed", "changed") and not retry):
        click.echo(safe(f"{name}: {found.state}. {found.note}".strip()))
        return DONE if found.state == "finished" else NOT_DONE
    job.folder.mkdir(parents=True, exist_ok=True)
    claim(file, job.folder.parent)
    return do(job, lambda settings: run_of_settings(settings, started, offers=False))
