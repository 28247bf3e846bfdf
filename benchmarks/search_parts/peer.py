"""The peer's search, as a black box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.peer.other import completed_trials, default_peer_venv, peer_command, program_in
from benchmarks.peer.processes import failure, run_process, say
from benchmarks.peer.records import Case
from benchmarks.search_parts.records import Run, Seen

STARTUP_SHARE = 0.3
"""Random trials among all, as in both tools' defaults (60 of 200)."""

BATCH_SIZE = 50


def run_peer(
    model: str,
    folder: Path,
    sets: Mapping[str, Path],
    *,
    seed: int,
    trials: int,
    new_tokens: int,
    work: Path,
    dtype: str,
    seconds: float | None = None,
) -> Run:
    """Let the peer search, with its own defaults but for prompts, lengths and numbers of trials.

    Its journal stays in `work`: one that is complete is read, not made again.

    Args:
        model: The name in the records.
        folder: The model's.
        sets: Setting, such as `good_prompts`, to the file of prompts.
        seconds: See `read_peer`.
    """
    journals = work / "journals"
    if not _whole(journals, trials):
        work.mkdir(parents=True, exist_ok=True)
        case = Case(str(folder), dtype, new_tokens, trials, seed, "peer")
        command = peer_command(case, BATCH_SIZE, program_in(default_peer_venv()), journals)
        options: dict[str, object] = {
            "row-normalization": "FULL",  # its default
            "n-startup-trials": round(STARTUP_SHARE * trials),
        }
        options |= {f"{setting.replace('_', '-')}.dataset": path for setting, path in sets.items()}
        for option, value in options.items():
            command[command.index(f"--{option}") + 1] = str(value)
        say(f"The peer on the model {model}, seed {seed}, {trials} trials")
        run_process(command, work)  # its exit status tells nothing, see run_peer of versus_peer
        if not _whole(journals, trials):
            raise failure("The peer", work / "log")
    return read_peer(model, journals, seed, seconds)


def _whole(journals: Path, trials: int) -> bool:
    found = list(journals.glob("*.jsonl"))
    return len(found) == 1 and len(completed_trials(found[0])) >= trials


def read_peer(model: str, journals: Path, seed: int, seconds: float | None = None) -> Run:
    """A run from the peer's journal.

    Args:
        seconds: Of a trial; by default as the journal has them, one by one.
    """
    (journal,) = journals.glob("*.jsonl")
    seen, at = [], 0.0
    for row in completed_trials(journal):
        at += row["seconds"] if seconds is None else seconds
        seen.append(Seen(at, None, row["refusals"] / 100, row["kl_divergence"]))
    note = "" if seconds is None else f"trials counted with {seconds} s each"
    return Run(model, "peer", seed, tuple(seen), note=note)
