"""The benchmark for a GPU, as it runs on a CPU: its report, its budget, what it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from benchmarks.gpu_parts.command import SECTIONS, TAKES_DOWN, parsed, run_all
from benchmarks.gpu_parts.launches import Tally, activities, tally
from benchmarks.gpu_parts.needs import Need, import_path, needs
from benchmarks.gpu_parts.records import STATES, Section, read, writer
from benchmarks.gpu_parts.report import WIDTH, Found, as_data, markdown
from benchmarks.gpu_parts.search import IMPORTS, TRIALS, Watched
from benchmarks.gpu_parts.sizes import SIZES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
ON_A_GPU_ONLY = "A CPU has no launches"
pytestmark = pytest.mark.timeout(1500)


def run(out: Path, *arguments: str, tiny: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    command += ["--tiny"] if tiny else []
    # Threads of several processes on few cores would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def data_in(out: Path) -> Any:
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


def states(data: Any) -> dict[str, str]:
    return {section["name"]: section["state"] for section in data["sections"]}


def rows(data: Any, table: str) -> list[dict[str, Any]]:
    return [row for section in data["sections"] for row in section["tables"].get(table, ())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with a random and a trained model, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    # Time enough for a slow machine with other work: nothing here is about time.
    done = run(out, "--seconds", "1200", "--sections", "device", "4b", "search", "peer")
    assert done.returncode == 0, f"{done.stderr}\n{(out / 'gpu.log').read_text()}"
    return out, done.stdout


@pytest.mark.slow
def test_all_figures_of_a_random_model_are_there(whole: tuple[Path, str]) -> None:
    data, size = data_in(whole[0]), SIZES["tiny"]
    cells = size.cells["4b"]
    wanted = {(length, plans) for length in cells.lengths for plans in cells.plans}
    trials = [row for row in rows(data, "trials") if row["fixed_lengths"]]
    assert {(row["new_tokens"], row["plans"]) for row in trials} == wanted
    for row in trials:
        assert len(row["seconds_a_trial"]) >= 1
        assert all(second > 0 for second in row["seconds_a_trial"])
        assert row["cache_bytes"] > 0
        assert len(row["refusals"]) == row["plans"]
    decoding = rows(data, "decoding")
    assert {row["plans"] for row in decoding} == set(cells.plans)
    for row in decoding:
        assert row["rows"] == row["plans"] * size.prompts
        assert row["step_seconds"] == pytest.approx(row["rows"] / row["rates"][0])
        assert row["engine"] == "shared batches"
        assert row["step_bytes"] > 0


@pytest.mark.slow
def test_a_whole_search_runs_on_a_model_that_was_trained_for_it(whole: tuple[Path, str]) -> None:
    data, size = data_in(whole[0]), SIZES["tiny"]
    [training] = rows(data, "training")
    assert training["right"] > 0.6  # it tells the topic from other prompts
    last = rows(data, "search")[-1]
    assert last["wanted"] == size.trials
    assert last["trials"] >= 1  # a slow machine comes to the time limit
    assert last["ended"]
    stages = rows(data, "startup")
    names = [row["stage"] for row in stages]
    assert (names[0], names[-1]) == (IMPORTS, TRIALS)
    assert "Fitting the edit's vectors" in names  # what `auto` begins with
    ends = [row["begins"] + row["seconds"] for row in stages]
    assert ends[:-1] == pytest.approx([row["begins"] for row in stages[1:]])
    assert ends[-1] == pytest.approx(last["seconds"], abs=0.1)


@pytest.mark.slow
def test_what_was_left_out_is_said(whole: tuple[Path, str]) -> None:
    out, printed = whole
    data, text = data_in(out), (out / "gpu.md").read_text(encoding="utf-8")
    assert states(data)["8b"] == "not asked"
    assert printed == f"{text}\n"
    joined = " ".join(text.split())
    assert ON_A_GPU_ONLY in joined
    assert "heretic-llm==1.4.0 was not measured" in joined
    assert "stand-in for the planted 135M" in joined
    assert not rows(data, "steps")
    assert not any("peak_bytes" in row for row in rows(data, "trials"))
    assert str(out) not in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_short_budget_leaves_a_whole_report(tmp_path: Path) -> None:
    # Enough to begin, and too little to import torch and end.
    done = run(tmp_path, "--seconds", str(SIZES["tiny"].least["device"] + 3.5))
    data = data_in(tmp_path)
    found = states(data)
    assert list(found) == list(SECTIONS)
    assert found["peer"] == "no time"
    assert set(found.values()) <= {"done", "cut short", "no time"}
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert STATES["no time"] in text
    assert done.returncode == 0
    assert rows(data, "search") == []


SLOW_SECTION = """
import subprocess, sys, time
place = sys.argv[sys.argv.index("--records") + 1]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(place, "a").write('["device", {"what": "child", "figure": %d, "unit": ""}]\\n' % child.pid)
time.sleep(600)
"""


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits for nothing but to be collected."""
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_section_that_does_not_end_is_ended_and_its_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_SECTION, encoding="utf-8")
    monkeypatch.setattr("benchmarks.gpu_parts.command.SCRIPT", script)
    options = parsed(["--tiny", "--out", str(tmp_path)], "")
    found = Found("", "tiny", 0.0)
    end = time.monotonic() + SIZES["tiny"].least["device"] + TAKES_DOWN + 1
    run_all(options, found, tmp_path, [], end)
    [first, *others] = found.sections
    assert first.state == "cut short"
    assert {one.state for one in others} == {"no time"}
    [row] = data_in(tmp_path)["sections"][0]["tables"]["device"]
    assert has_ended(row["figure"])  # what it had started is gone too


def test_without_a_gpu_the_full_size_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path, tiny=False)
    assert done.returncode == 2
    assert "add --tiny" in done.stderr
    assert f"torch >=2.6: {torch.__version__}" in done.stderr
    assert data_in(tmp_path)["sections"] == []


def test_rows_of_a_killed_section_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read(path) == {}
    emit = writer(path)
    emit("one", {"figure": 1})
    emit("other", {"figure": 2})
    emit("one", {"figure": 3})
    with path.open("a", encoding="utf-8") as file:
        file.write('["one", {"fig')
    assert read(path) == {"one": [{"figure": 1}, {"figure": 3}], "other": [{"figure": 2}]}


# --- packages ------------------------------------------------------------------------------


def project(folder: Path, *dependencies: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(f"[project]\ndependencies = {json.dumps(dependencies)}\n", encoding="utf-8")
    return path


def test_what_is_needed_is_compared_with_what_is_here(tmp_path: Path) -> None:
    file = project(tmp_path, "torch>=2.6", "pytest>=2,<3", "no-such-package>=1", "gguf>=1000")
    torch_here, old, missing, optional = needs(file)
    assert torch_here.fits
    assert not torch_here.stops
    assert old.fits is False
    assert old.stops
    assert old.line.endswith("which does not fit")
    assert missing.found is None
    assert missing.stops
    assert missing.line == "no-such-package >=1: MISSING"
    assert not optional.stops


def test_here_all_packages_of_the_project_fit() -> None:
    found = needs()
    assert {"torch", "transformers", "optuna"} <= {need.name for need in found}
    assert [need.line for need in found if need.stops] == []


def test_wheels_are_unpacked_onto_the_path(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    assert import_path(None, target) == []
    assert import_path(wheels, target) == [wheels]
    with zipfile.ZipFile(wheels / "brought_along-1.5-py3-none-any.whl", "w") as archive:
        archive.writestr("brought_along.py", "figure = 7\n")
        archive.writestr(
            "brought_along-1.5.dist-info/METADATA", "Name: brought-along\nVersion: 1.5\n"
        )
    path = import_path(wheels, target)
    code = (
        "import brought_along, importlib.metadata as m; "
        "print(brought_along.figure, m.version('brought-along'))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "1.5"]
    (wheels / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match=r"broken-1.0.*cannot be unpacked"):
        import_path(wheels, target)
    with pytest.raises(SystemExit, match="no folder"):
        import_path(tmp_path / "nowhere", target)


# --- reading a profile and a log -----------------------------------------------------------


class Span:
    def __init__(self, microseconds: float) -> None:
        self._microseconds = microseconds

    def elapsed_us(self) -> float:
        return self._microseconds


class Event:
    """An event with what `tally` reads of torch's."""

    def __init__(self, name: str, device: str, microseconds: float) -> None:
        self.name, self.device_type = name, SimpleNamespace(name=device)
        self.time_range = Span(microseconds)


def test_launches_kernels_and_their_time_are_counted() -> None:
    events = [
        Event("aten::add", "CPU", 50),
        Event("cudaLaunchKernel", "CPU", 5),
        Event("cuLaunchKernelEx", "CPU", 5),
        Event("cudaGraphLaunch", "CPU", 9),
        Event("cudaDeviceSynchronize", "CPU", 900),
        Event("vectorized_elementwise_kernel", "CUDA", 20),
        Event("gemm", "CUDA", 70),
        Event("Memcpy DtoH (Device -> Pinned)", "CUDA", 10),
    ]
    found = tally(events)
    assert (found.launches, found.graphs, found.kernels) == (3, 1, 2)
    assert found.busy_seconds == pytest.approx(1e-4)
    step = (tally([*events, *events]) - found) / 2
    assert (step.launches, step.graphs, step.kernels) == (1.5, 0.5, 1)


def test_events_of_torch_have_what_is_read() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.ones(4).add_(1)
    events = seen.events()
    assert events
    assert tally(events) == Tally(0, 0, 0, 0.0)
    assert events[0].time_range.elapsed_us() >= 0
    assert activities()


LINES = (
    (2.0, "Loading prompts ..."),
    (3.0, "Loading prompts: 12 good and 12 bad for directions (1s)"),
    (3.5, "Device: CPU, 1 threads"),
    (4.0, "Loading /somewhere/model ..."),
    (6.0, "Fitting the edit's vectors ..."),
    (6.5, "  3/40 steps"),
    (9.0, "Search: 0 of 2 trials done"),
    (10.0, "trial 0: refusals 9/12, KL divergence 0.0024; 1 of 2 trials; front of 1; elapsed 1s"),
    (12.0, "trial 1: refusals 8/12, KL divergence 0.0031; 2 of 2 trials; front of 2; elapsed 3s"),
    (12.5, "Search: 2 trials in 3s"),
)


def test_stages_and_trials_are_read_from_what_the_command_prints() -> None:
    log = Watched("a model", 2)
    found: list[tuple[str, Any]] = []
    for at, line in LINES:
        assert not log.is_over
        found += log.take(line, at)
    assert log.is_over
    stages = [
        (row["stage"], row["begins"], row["seconds"]) for kind, row in found if kind == "startup"
    ]
    assert stages == [
        (IMPORTS, 0.0, 2.0),
        ("Loading prompts", 2.0, 2.0),
        ("Loading the model", 4.0, 2.0),
        ("Fitting the edit's vectors", 6.0, 3.0),
        (TRIALS, 9.0, 3.5),
    ]
    last = [row for kind, row in found if kind == "search"][-1]
    assert (last["trials"], last["first_trial"], last["seconds"]) == (2, 10.0, 12.5)


def test_a_time_limit_ends_a_search_too() -> None:
    log = Watched("a model", 40)
    list(log.take("Search: 0 of 40 trials done", 5.0))
    found = list(log.take("Time limit of 1m 20s reached: 12 of 40 trials", 80.0))
    assert log.is_over
    assert found[-1][1]["ended"].startswith("Time limit")


# --- the report ----------------------------------------------------------------------------

MODEL = "qwen3-4b, random weights"


def on_a_gpu() -> Found:
    """What a GPU would give, with figures that are easy to follow."""
    section = Section("4b", "done", 100.0)
    section.tables = {
        "models": [
            {
                "model": MODEL,
                "layers": 36,
                "parameters": 4_022_468_096,
                "weights_bytes": 8_044_936_192,
                "dtype": "bfloat16",
                "slots": 2048,
                "open_seconds": 9.0,
            }
        ],
        "trials": [
            {
                "model": MODEL,
                "new_tokens": 100,
                "prompts": 100,
                "plans": 16,
                "seconds_a_trial": [0.5, 0.7, 0.6],
                "first_call": 12.25,
                "fixed_lengths": True,
                "refusals": [0.0] * 16,
                "cache_bytes": 30e9,
                "peak_bytes": 34e9,
            }
        ],
        "decoding": [
            {
                "model": MODEL,
                "plans": 16,
                "rows": 1600,
                "rates": [80000.0],
                "step_seconds": 0.02,
                "step_bytes": 40e9,
                "bandwidth": 4e12,
                "matrix_seconds": 0.018,
                "engine": "shared batches",
            }
        ],
        "steps": [
            {
                "model": MODEL,
                "plans": 16,
                "rows": 1600,
                "launches": 2.0,
                "graphs": 1.0,
                "kernels": 900.0,
                "busy_seconds": 0.016,
            }
        ],
        "peer": [
            {
                "model": MODEL,
                "new_tokens": 100,
                "prompts": 100,
                "seconds_a_trial": [3.0, 6.0, 9.0],
                "median": 6.0,
                "whole_seconds": 40.0,
            }
        ],
    }
    need = Need("torch", ">=2.6", "2.11.0", fits=True)
    return Found("python benchmarks/gpu.py", "full", 480.0, [need], [section])


def cells(text: str, title: str) -> Sequence[Sequence[str]]:
    """The rows of the table under a heading, without its first two lines."""
    _, _, rest = text.partition(f"## {title}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_report_of_a_gpu() -> None:
    text = markdown(on_a_gpu())
    assert cells(text, "Trials") == [["A", "100", "16", "0.600", "12.2", "-", "30.00", "34.00"]]
    [decoding] = cells(text, "Decoding")
    assert decoding == [
        "A",
        "16",
        "1600",
        "80000",
        "20.00",
        "10.00",
        "50%",
        "18.00",
        "shared batches",
    ]
    assert cells(text, "Steps") == [["A", "16", "1600", "2", "1.0", "900", "16.00", "1.25"]]
    assert cells(text, "Peer") == [["A", "100", "6.000", "40", "10.0"]]
    assert "Whole search" not in text  # there is nothing to show
    assert max(map(len, text.splitlines())) <= WIDTH
    assert json.loads(json.dumps(as_data(on_a_gpu())))["sections"][0]["state"] == "done"
