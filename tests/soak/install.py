"""Installs the project as README says into new environments, tries it there, and removes them.

    python -m tests.soak.install python3.11 python3.12 python3.13

For each interpreter: `pip install .` in the source, `uv tool install .` there, and `pipx install`
of the wheel, each with the constraints. uv and pipx are fetched into an environment of their own.
What pip and uv have downloaded stays in their caches, for the next time: gigabytes, where the
package index serves only PyTorch's stock build. To use a CPU build that lies in a folder, name the
folder in PIP_FIND_LINKS and UV_FIND_LINKS.

An interpreter that is not here is named and left out. Ends with status 1 if an installation fails,
or if none was tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import heretic

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ("-c", "constraints.txt", "-c", "constraints-torch.txt")
ROOM_GB = 12
"""Free disk that an installation with CUDA's libraries needs, and the download of these."""

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_NO_INDEX", "PIP_CONSTRAINT")
"""What would let an environment see another one, or keep it from the package index."""


@dataclass(frozen=True)
class Bench:
    """Where installations are made.

    Attributes:
        folder: A temporary folder.
        source: A copy of the files that git knows, so that nothing built earlier gets in.
        wheel: The wheel, built from that copy.
        tools: The folder with the commands uv and pipx.
    """

    folder: Path
    source: Path
    wheel: Path
    tools: Path


def environment(bench: Bench) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {
        **kept,
        "UV_TOOL_DIR": str(bench.folder / "uv"),
        "UV_TOOL_BIN_DIR": str(bench.folder / "uv-bin"),
        "UV_PYTHON_DOWNLOADS": "never",
        "PIPX_HOME": str(bench.folder / "pipx"),
        "PIPX_BIN_DIR": str(bench.folder / "pipx-bin"),
    }


def call(bench: Bench, *command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; what it printed.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd or bench.source,
        env=environment(bench),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-1500:]
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{said}")
    return done.stdout


def by_pip(bench: Bench, python: str) -> Path:
    place = bench.folder / "venv"
    call(bench, python, "-m", "venv", place)
    call(bench, place / "bin" / "pip", "install", "-q", ".", *CONSTRAINTS)
    call(bench, place / "bin" / "pip", "check")
    return place / "bin" / "heretic"


def by_uv(bench: Bench, python: str) -> Path:
    call(bench, bench.tools / "uv", "tool", "install", "-q", "--python", python, ".", *CONSTRAINTS)
    return bench.folder / "uv-bin" / "heretic"


def by_pipx(bench: Bench, python: str) -> Path:
    options = ("--python", python, "--backend", "pip", "--pip-args", " ".join(CONSTRAINTS))
    call(bench, bench.tools / "pipx", "install", bench.wheel, *options)
    return bench.folder / "pipx-bin" / "heretic"


WAYS: dict[str, Callable[[Bench, str], Path]] = {
    "pip install .": by_pip,
    "uv tool install .": by_uv,
    "pipx install WHEEL": by_pipx,
}


def tried(bench: Bench, command: Path) -> str:
    """Try an installed command far from the source; the line of `--version` about torch."""
    away = bench.folder / "away"
    away.mkdir(exist_ok=True)
    lines = call(bench, command, "--version", cwd=away).splitlines()
    expected = [f"heretic {heretic.__version__}", "transformers ", "torch ", "Python "]
    assert len(lines) == len(expected), lines  # no warning follows
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines
    assert "Usage: " in call(bench, command, "demo", "--help", cwd=away)
    python = command.resolve().parent / "python"
    assert "pip" in call(bench, python, "-m", "pip", "--version", cwd=away)  # the demo needs it
    (away / "replies.jsonl").write_text('{"response": "I cannot help with that."}\n')
    assert '"refusal"' in call(bench, command, "classify", "replies.jsonl", cwd=away)
    assert "sycophancy" in call(bench, command, "--help-all", cwd=away)  # read from its files
    return lines[2]


def size(folder: Path) -> float:
    """Gigabytes of the files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 1e9


def attempts(bench: Bench, python: str) -> Iterator[bool]:
    """Install in each way, print what came out, and remove the environment."""
    for label, install in WAYS.items():
        free = shutil.disk_usage(bench.folder).free / 1e9
        if free < ROOM_GB:
            print(f"{python}: {label}: {free:.0f} GB are free, {ROOM_GB} are needed", flush=True)
            yield False
            continue
        before, start = size(bench.folder), perf_counter()
        try:
            torch = tried(bench, install(bench, python))
        except (RuntimeError, AssertionError) as error:
            print(f"{python}: {label}: FAILED: {error}", flush=True)
            yield False
        else:
            grown, seconds = size(bench.folder) - before, perf_counter() - start
            print(f"{python}: {label}: {seconds:.0f} s, {grown:.1f} GB, {torch}", flush=True)
            yield True
        for name in ("venv", "uv", "uv-bin", "pipx", "pipx-bin", "away"):
            shutil.rmtree(bench.folder / name, ignore_errors=True)


def prepared(folder: Path) -> Bench:
    source, tools = folder / "source", folder / "tools"
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    bench = Bench(folder, source, folder, tools / "bin")
    call(bench, sys.executable, "-m", "venv", tools)
    call(bench, tools / "bin" / "pip", "install", "-q", "uv", "pipx", "build")
    call(bench, tools / "bin" / "python", "-m", "build", "-q", "--wheel", "-o", folder / "dist")
    (wheel,) = (folder / "dist").glob("*.whl")
    return Bench(folder, source, wheel, tools / "bin")


def main(pythons: list[str]) -> int:
    found = {name: path for name in pythons if (path := shutil.which(name))}
    for name in pythons:
        if name not in found:
            print(f"{name}: not found, not tried")
    if not found:
        return 1
    with tempfile.TemporaryDirectory(prefix="heretic-install-") as folder:
        bench = prepared(Path(folder))
        results = [good for path in found.values() for good in attempts(bench, path)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
