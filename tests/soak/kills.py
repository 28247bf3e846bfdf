"""Kills (SIGKILL) at random moments of a run, and the run that goes on afterwards.

    python -m tests.soak.kills --count 100

A tiny model is searched by the command, saved at the end, and killed again and again: while it
loads, in the sweep, in a trial, while a file is written, in the export. After each kill every file
must be whole, and no finished trial may be lost or changed. The last call is not killed: it must
have proposed what an uninterrupted search proposes, and have saved the same weights. A fifth of the
kills come in an upload, to a stand-in for the Hub: its repository must be empty or complete. Ends
with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

from safetensors.torch import load_file
from torch import Tensor

from heretic.records import Trial
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs
from tests.support import hub_server

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
N_TRIALS = 14
"""Two more than the sweep's plans, so that the sampler proposes some."""

IN_FLIGHT = 1
"""Trials that a kill may cost: one plan at a time is evaluated on a CPU."""

MOMENTS = (
    "",
    "Loading model",
    "Scoring the original",
    "Gradient sweep",
    "trial ",
    "Saving",
    "Check",
)
"""What the command has said when the kill is near; the first stands for its start."""

LONGEST_WAIT = 0.6
"""Seconds from that to the kill, at most."""

COMMAND = (
    *(sys.executable, "-m", "heretic", "--n-trials", str(N_TRIALS), "--trial-index", "0"),
    *("--model-action", "save", "--save-directory", "edited", "--export-strategy", "merge"),
)

REPOSITORY = f"{hub_server.USER}/edited"

UPLOAD = (
    *(sys.executable, "-m", "heretic", "export", "1", "--trial-index", "0"),
    *("--model-action", "upload", "--upload-repo-id", REPOSITORY, "--upload-repo-private"),
    *("--export-strategy", "merge"),
)

REQUESTS = 12
"""Roughly as many as an upload makes."""


def place_for(parent: Path, name: str) -> Path:
    """A folder with model, prompts and settings, without a run."""
    place = parent / name
    shutil.copytree(EARLIER, place)
    shutil.rmtree(place / "checkpoints")
    return place


def started(
    place: Path, command: Sequence[str] = COMMAND, **environment: str
) -> subprocess.Popen[bytes]:
    """A command, in a folder."""
    log = (place / "output.log").open("ab")
    variables = {**os.environ, **environment}
    with log:
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log, env=variables)


def finished(place: Path, command: Sequence[str] = COMMAND, **environment: str) -> None:
    """Run a command to its end.

    Raises:
        AssertionError: It failed.
    """
    status = started(place, command, **environment).wait()
    assert status == 0, (place / "output.log").read_text()[-3000:]


def folder_of(place: Path) -> RunFolder | None:
    """The run in a folder; None before there is one."""
    runs = list_runs(place / "checkpoints")
    unreadable = [run.note for run in runs if run.state == "unreadable"]
    assert not unreadable, unreadable
    return RunFolder(runs[0].path) if runs else None


def complete(place: Path) -> dict[int, Trial]:
    """Finished trials by number, after a check of every file.

    Raises:
        RunError: A file is not whole.
    """
    folder = folder_of(place)
    if folder is None:
        return {}
    folder.require_manifest()
    folder.load_directions()
    folder.read_sweep()
    for name in ("front.json", "baseline.safetensors"):
        folder.check_recorded(name)
    return {trial.number: trial for trial in folder.read_trials() if trial.state == "complete"}


def weights(place: Path) -> dict[str, Tensor]:
    """The saved model; empty if nothing has been saved."""
    path = place / "edited" / "model.safetensors"
    return load_file(path) if path.is_file() else {}


def check_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """What is saved is the whole model, or nothing."""
    if found:
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected), "other weights"


def killed_once(place: Path, moment: str, wait: float) -> str:
    """Run the command, and kill it some seconds after a moment; says how far it had come."""
    before = complete(place)
    log = place / "output.log"
    said = log.stat().st_size if log.exists() else 0
    process = started(place)
    while process.poll() is None and moment.encode() not in log.read_bytes()[said:]:
        sleep(0.002)
    end = monotonic() + wait
    while process.poll() is None and monotonic() < end:
        sleep(0.002)
    ended = process.poll()
    process.kill()
    process.wait()
    assert ended in (None, 0), (place / "output.log").read_text()[-3000:]
    after = complete(place)
    assert before.items() <= after.items(), "finished trials are lost or changed"
    folder = folder_of(place)
    if ended == 0:
        return "finished before the kill"
    if folder is None:
        return "before the run began"
    if len(after) == N_TRIALS:
        return "in the export"
    return "in a trial" if after or folder.journal_path.exists() else "in the sweep"


def uploads_killed(place: Path, count: int, rng: random.Random) -> Counter[str]:
    """Kill uploads of the run in a folder; counts what they left on the Hub.

    Raises:
        AssertionError: A repository held some files of an upload, not all; the upload that was not
            killed failed, or left files in the temporary folder.
    """
    temporary = place / "temporary"
    temporary.mkdir()
    found: Counter[str] = Counter()
    with hub_server.serve() as hub:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub_server.WRITE_TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "TMPDIR": str(temporary),
        }
        for _ in range(count):
            hub.repositories.clear()
            hub.objects.clear()
            hub.requests.clear()
            after, wait = rng.randint(1, REQUESTS), rng.uniform(0, 0.05)
            process = started(place, UPLOAD, **variables)
            while process.poll() is None and len(hub.requests) < after:
                sleep(0.001)
            sleep(wait)
            process.kill()
            process.wait()
            left_there = "the whole model" if is_uploaded(hub) else "nothing"
            found[f"in an upload, which left {left_there} on the Hub"] += 1
        finished(place, UPLOAD, **variables)
        assert is_uploaded(hub)
        left = [path for path in temporary.rglob("*") if "heretic" in path.name]
        assert not left, left
    return found


def is_uploaded(hub: hub_server.Hub) -> bool:
    """Whether the Hub holds the model.

    Raises:
        AssertionError: It holds some of the files.
    """
    repository = hub.repositories.get(REPOSITORY)
    if repository is None or set(repository.files) == {".gitattributes"}:
        return False
    files = repository.files.keys()
    assert {"model.safetensors", "README.md", "SHA256SUMS", "config.json"} <= files, files
    sums = repository.files["SHA256SUMS"].decode().splitlines()
    assert {line.split("  ", 1)[1] for line in sums} <= files, files
    return True


def plans(trials: Sequence[Trial]) -> list[object]:
    """The plans that were evaluated, in order."""
    return [trial.plan for trial in sorted(trials, key=lambda trial: trial.number)]


def main(count: int, seed: int) -> int:
    """Kill `count` times; returns the exit status."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    with tempfile.TemporaryDirectory() as parent:
        whole = place_for(Path(parent), "whole")
        finished(whole)
        expected = weights(whole)
        found.update(uploads_killed(whole, in_uploads := count // 5, rng))
        print(f"{in_uploads} kills in uploads", flush=True)
        runs = lost = 0
        kills = in_uploads
        while kills < count:
            place = place_for(Path(parent), "killed")
            for _ in range(rng.randint(1, 5)):
                wait = rng.uniform(0, LONGEST_WAIT)
                found[killed_once(place, rng.choice(MOMENTS), wait)] += 1
                check_weights(weights(place), expected)
                kills += 1
            finished(place)
            trials = complete(place)
            assert plans(list(trials.values())) == plans(list(complete(whole).values()))
            check_weights(weights(place), expected)
            assert weights(place)
            lost += max(trials) + 1 - N_TRIALS
            runs += 1
            left = [path for path in place.rglob("*") if path.name.endswith(".tmp")]
            assert not left, left
            shutil.rmtree(place)
            print(f"{kills} kills in {runs} runs", flush=True)
    for text, times in sorted(found.items()):
        print(f"{times:5} {text}")
    print(f"{lost} trials in flight were evaluated again")
    assert lost <= kills * IN_FLIGHT
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.count, given.seed))
