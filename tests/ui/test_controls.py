"""What the page of a run offers, and what it says beside that."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("nicegui")

from tests.support import page_case

from heretic.runs.folder import RunFolder
from heretic.ui import site as site_module
from heretic.ui.job import Job
from heretic.ui.pages.parts import work_of
from heretic.ui.pages.run import controls_of
from heretic.ui.places import Places
from heretic.ui.site import Site
from heretic.ui.views import run_rows
from heretic.ui.watch import Watch
from heretic.worker.protocol import State

RUN = "name-0123456789ab"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    path = page_case.make_run(tmp_path / "runs" / RUN)
    job = Job(tmp_path, tmp_path / "runs")
    job.run = path
    return Site(tmp_path / "runs", Places.of([tmp_path]), job)


@pytest.fixture
def watch(site: Site) -> Watch:
    found = site.watches.of(site.path_of(RUN))
    found.look()
    return found


def test_a_search_that_failed_says_why(site: Site, watch: Watch) -> None:
    problem = "Ten trials in a row failed: \x1b[31mno memory. Take a smaller batch_size."
    site.job.state = State(state="ready", reason="failed", problem=problem)
    found = controls_of(site, watch)
    assert "Ten trials in a row failed" in found.said
    assert "Take a smaller batch_size." in found.said
    assert "\x1b" not in found.said
    assert found.go_on


def test_a_loaded_model_can_be_unloaded_unless_it_is_worked_on(site: Site, watch: Watch) -> None:
    site.job.state = State(state="ready")
    assert controls_of(site, watch).unload
    for busy in (State(state="ready", doing="score"), State(state="searching")):
        site.job.state = busy
        assert not controls_of(site, watch).unload
    site.job.state = State(state="stopped")
    found = controls_of(site, watch)
    assert (found.unload, found.load) == (False, True)


def test_a_worker_that_ends_is_no_other_process(site: Site, watch: Watch) -> None:
    site.job.state, site.job.ending = State(state="stopped"), True
    watch.is_locked = True
    found = controls_of(site, watch)
    assert found.said == "The worker ends."
    assert not found.load


def test_a_search_of_a_batchs_run_is_linked_to_that_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = page_case.make_run(runs / "night" / "small" / RUN)
    page_case.make_run(runs / RUN)  # of the same name
    job = Job(tmp_path, runs)
    job.run, job.state = path.resolve(), State(state="searching")
    site = Site(runs, Places.of([tmp_path]), job)
    told, key = work_of(site)
    assert told == f"Searching: {RUN}"
    assert site.path_of(key) == path


def test_the_list_reads_a_run_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "LIST_SECONDS", 0.0)
    (first,) = asyncio.run(site.listed())
    monkeypatch.setattr(RunFolder, "read_trials", None)  # whoever called it would fail
    assert list(asyncio.run(site.listed())) == [first]
    assert first.note is None


def test_a_run_that_is_loaded_here_is_not_called_running(site: Site) -> None:
    """Its folder is in use, which is all that the folder tells."""

    def states() -> dict[str, str]:
        runs = asyncio.run(site.listed())
        return {row.name: row.state for row in run_rows(runs, site.own_states(runs))}

    with RunFolder(site.runs / RUN).lock():
        assert states() == {RUN: "running"}
        for own in (State(state="ready"), State(state="paused"), State(state="searching")):
            site.job.state = own
            assert states() == {RUN: "loaded" if own.state == "ready" else own.state}
        site.job.run = None
        assert states() == {RUN: "running"}


def test_a_name_that_is_not_utf8_has_an_address(tmp_path: Path) -> None:
    path = page_case.make_run(tmp_path / "night" / os.fsdecode(b"caf\xe9-0123456789ab"))
    site = Site(tmp_path, Places.of([tmp_path]), Job(tmp_path, tmp_path))
    (row,) = run_rows(asyncio.run(site.listed()))
    assert row.key == "night:caf~e9-0123456789ab"
    assert quote(row.key).isascii()
    assert site.path_of(row.key) == path
    assert site.key_of(path.resolve()) == row.key
