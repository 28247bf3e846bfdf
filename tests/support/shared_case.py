"""A search of several processes on one storage, without a model. Also a program, to be killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from heretic.events import Reporter, Silent
from heretic.records import Plan, Score
from heretic.runs.folder import RunFolder
from heretic.search import Study
from heretic.search.shared import pulse, storage
from heretic.search.shared import remote as remote_module
from heretic.search.shared import study as study_module
from heretic.search.shared.remote import Remote, connected
from tests.support.search_case import Recorder, evaluate, make_study

NAME = "0123456789ab"


@contextmanager
def hastened(patience: float = 20.0, stopped: float = 1.5) -> Iterator[None]:
    """Dead processes and absent storages are noticed within seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulse, "BEAT", 0.2)
        patch.setattr(pulse, "STOPPED", stopped)
        patch.setattr(storage, "PATIENCE", patience)
        patch.setattr(remote_module, "HURRY", 0.5)
        patch.setattr(study_module, "POLL", 0.1)
        yield


@contextmanager
def shared(
    url: str,
    folder: Path,
    reporter: Reporter | None = None,
    name: str = NAME,
    **options: Any,
) -> Iterator[tuple[Study, Remote]]:
    """A study in a run folder that follows a storage."""
    with connected(url, name, reporter or Silent()) as remote:
        study = make_study(RunFolder(folder), **options)
        study.remote = remote
        yield study, remote


def stuck_of(folder: Path) -> Path:
    """The file that says that the program of a run folder has a plan in hand that never ends."""
    return folder.with_suffix(".stuck")


def slow(seconds: float, plans_that_end: float, stuck: Path):
    """An evaluation that takes a while, and after some plans for ever."""
    ended = 0

    def evaluated(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        nonlocal ended
        if ended >= plans_that_end:
            stuck.touch()
            time.sleep(600)
        time.sleep(seconds)
        ended += 1
        return evaluate(plans)

    return evaluated


def main(url: str, folder: str, n_trials: str, seconds: str, plans_that_end: str = "inf") -> None:
    """Search, and say what was warned of."""
    recorder = Recorder()
    evaluated = slow(float(seconds), float(plans_that_end), stuck_of(Path(folder)))
    with (
        hastened(stopped=10.0),  # a busy machine lets nobody run for seconds
        shared(url, Path(folder), recorder) as (study, _),
    ):
        study.run(evaluated, int(n_trials), recorder)
    print(json.dumps(recorder.notices()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
