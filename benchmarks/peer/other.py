"""The peer: installed, run by its command line, and known by its journal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peer.processes import environment, failure, run_process, say
from benchmarks.peer.records import MEASURED_PACKAGES, PEER, PROMPTS, SETS, Case, Measured
from benchmarks.peer.report import spread

TUNING_TRIALS = 2
"""Trials per batch size when the peer's best is looked for."""


@dataclass(frozen=True, slots=True)
class Program:
    """How the peer's command line is started.

    Attributes:
        command: Its beginning.
        environment: Variables to set.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def program_in(venv: Path) -> Program:
    """The peer that is installed in a virtual environment."""
    return Program((str(venv / "bin" / "heretic"),))


def default_peer_venv() -> Path:
    """A folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "heretic" / "bench" / "peer"


def peer_versions(python: Path) -> dict[str, str]:
    """Versions in the peer's environment; empty if the peer is not installed there."""
    code = (
        "import json; from importlib.metadata import version; "
        f"print(json.dumps({{name: version(name) for name in {MEASURED_PACKAGES!r}}}))"
    )
    if not python.exists():
        return {}
    command = [str(python), "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def install_peer(venv: Path) -> dict[str, str]:
    """Make the peer's environment where it is not there yet; versions of what it holds.

    Torch is the release that Heretic is tested with, so that only the tools differ. All else is
    what the peer asks for.
    """
    python = venv / "bin" / "python"
    name, _, release = PEER.partition("==")
    if peer_versions(python).get(name) != release:
        say(f"Installing {PEER} (with PyTorch, up to 2.9 GB)")
        constraints = Path(__file__).resolve().parents[2] / "constraints-torch.txt"
        torch = re.findall(r"^torch==\S+", constraints.read_text(encoding="utf-8"), re.MULTILINE)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, PEER, *torch], env=environment(), stdout=sys.stderr, check=True)
    return peer_versions(python)


def peer_command(case: Case, batch_size: int, program: Program, journals: Path) -> list[str]:
    """The peer's command line; all plans are start-up trials, which are drawn at random."""
    from heretic.demo.data import prompt_file

    options: dict[str, object] = {
        "model": case.model,
        "dtypes": json.dumps([case.dtype]),
        "batch-size": batch_size,
        "max-response-length": case.new_tokens,
        "response-prefix": "",
        "row-normalization": "NONE",
        "n-trials": case.trials,
        "n-startup-trials": case.trials,
        "seed": case.seed,
        "study-checkpoint-dir": journals,
    }
    for setting, name in SETS.items():
        options[f"{setting.replace('_', '-')}.dataset"] = prompt_file(name)
        options[f"{setting.replace('_', '-')}.split"] = f"[:{PROMPTS}]"
    command = list(program.command)
    for option, value in options.items():
        command += [f"--{option}", str(value)]
    return command


def run_peer(case: Case, batch_size: int, program: Program) -> Measured:
    """Let the peer search, and read its journal.

    Its exit status tells nothing: without a terminal it ends with an error as soon as the search
    is over, because it asks what to do next.
    """
    with tempfile.TemporaryDirectory(prefix="versus-peer-") as name:
        folder = Path(name)
        command = peer_command(case, batch_size, program, folder / "journals")
        _, peak, seconds = run_process(command, folder, program.environment)
        journals = list(folder.glob("journals/*.jsonl"))
        trials = completed_trials(journals[0]) if len(journals) == 1 else []
        if len(trials) != case.trials:
            raise failure("The peer", folder / "log")
    return Measured(
        way="peer",
        seconds=[row["seconds"] for row in trials],
        refusals=[row["refusals"] for row in trials],
        kl_divergence=[row["kl_divergence"] for row in trials],
        baseline_refusals=trials[0]["base_refusals"],
        plans=[row["plan"] for row in trials],
        batch_size=batch_size,
        peak_bytes=peak,
        process_seconds=seconds,
    )


def completed_trials(journal: Path) -> list[dict[str, Any]]:
    """The complete trials of the one study in the peer's journal.

    The user attributes hold what was applied and seen: kernels with absolute minimal weights, the
    index (none for directions per layer), the refusals as a number and the KL divergence in nats.
    The trials' values are those divided by the baseline's refusals and by a scale.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name=None, storage=storage)
    rows = []
    for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        seen = trial.user_attrs
        assert trial.duration is not None
        assert seen["n_bad_prompts"] == PROMPTS
        plan = {
            "direction_scope": trial.params["direction_scope"],
            "direction_index": seen["direction_index"],
            "kernels": seen["parameters"],
            "row_normalization": "none",
        }
        names = ("refusals", "kl_divergence", "base_refusals")
        row = {"seconds": trial.duration.total_seconds(), "plan": plan}
        rows.append(row | {name: seen[name] for name in names})
    return rows


def best_batch_size(
    case: Case, sizes: Sequence[int], program: Program
) -> tuple[int, dict[int, Measured]]:
    """The batch size with which the peer is fastest, and its runs with each, on the same plans."""
    if len(sizes) == 1:
        return sizes[0], {}
    few = replace(case, trials=TUNING_TRIALS)
    tried: dict[int, Measured] = {}
    for size in sizes:
        tried[size] = run_peer(few, size, program)
        say(f"The peer with batches of {size}: {spread(tried[size].seconds)} s a trial")
    return min(tried, key=lambda size: tried[size].per_trial), tried
