"""What all tabs share, asked at once."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from tests.support import page_case

from heretic.errors import HereticError
from heretic.ui import watch
from heretic.ui.job import Job
from heretic.ui.places import Places
from heretic.ui.reports import Reports
from heretic.ui.site import Site
from heretic.ui.watch import Watch

RUN = "name-0123456789ab"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    page_case.make_run(tmp_path / "runs" / RUN)
    return Site(tmp_path / "runs", Places.of([tmp_path]), Job(tmp_path, tmp_path / "runs"))


def test_two_tabs_that_ask_at_once_get_the_same_list(site: Site) -> None:
    async def work() -> None:
        first, second = await asyncio.gather(site.listed(), site.listed())
        assert [run.path.name for run in first] == [RUN]
        assert second is first

    asyncio.run(work())


def test_a_folder_is_looked_at_by_one_thread_at_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    inside, most = [0], [0]

    class Slow(Watch):
        def _follow(self) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            super()._follow()
            inside[0] -= 1

    found = Slow(site.runs / RUN)
    threads = [threading.Thread(target=found.look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(found.trials) == 3


def test_a_report_runs_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "click.py").write_text("open('run', 'w').close()\nraise SystemExit(3)\n")
    reports = Reports()
    with pytest.raises(HereticError, match="nothing"):
        asyncio.run(reports.make([tmp_path / "nothing"]))
    reports.close()
    assert not (tmp_path / "run").exists()
