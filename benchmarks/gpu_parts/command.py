"""The command line of `benchmarks/gpu.py`: sections one after the other, each in its own process.

A section that crashes, hangs or fills the memory so leaves the others their time and their device.
Standard library only: packages may be missing, or come from `--wheels`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_parts.needs import ROOT, import_path, needs, remedy
from benchmarks.gpu_parts.records import Section, read, writer
from benchmarks.gpu_parts.report import Found, as_data, markdown
from benchmarks.gpu_parts.sizes import GRACE, SIZES, Job, Size

SCRIPT = ROOT / "benchmarks" / "gpu.py"
SECTIONS = {
    "device": "device:measure",
    "4b": "models:random_shape",
    "135m": "models:planted_shape",
    "search": "search:measure",
    "8b": "models:random_shape",
    "peer": "peer:measure",
}
"""Sections, the most important first, with module and function."""

TAKES_DOWN = 3.0
"""Seconds that the last section leaves for writing the report and for ending."""

LOOKS = 0.2
"""Seconds between two looks at a running section."""


def main(description: str) -> int:
    """Measure and write; 2 if a package or the device is missing, 1 if a section failed.

    Args:
        description: What `--help` says.
    """
    started = time.monotonic()
    options = parsed(sys.argv[1:], description)
    if options.section:
        return run_section(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no section is left behind
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        work = Path(name)
        path = import_path(options.wheels, work / "site")
        sys.path[:0] = map(str, path)
        found = Found(command(), options.size, options.seconds, needs())
        for need in found.needs:
            say(need.line)
        write(found, options.out)
        missing = [need for need in found.needs if need.stops]
        problem = remedy(missing) if missing else no_device(options.size, path)
        if problem:
            say(problem)
            return 2
        run_all(options, found, work, path, started + options.seconds)
    print(markdown(found))
    return int(any(one.state == "failed" for one in found.sections))


def parsed(arguments: Sequence[str], description: str) -> argparse.Namespace:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu.py", None, description, formatter_class=shape)
    add, out = parser.add_argument, os.environ.get("OUT")
    place = Path(out) if out else Path("gpu-results")
    add("--tiny", dest="size", action="store_const", const="tiny", default="full", help="on a CPU")
    add("--seconds", type=float, default=480.0, metavar="N", help="budget (480)")
    add("--out", type=Path, default=place, metavar="FOLDER", help="of gpu.json, gpu.md and gpu.log")
    add("--wheels", type=Path, metavar="FOLDER", help="wheels, or packages, to put on the path")
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some of them only")
    for hidden in ("--section", "--work", "--records"):
        add(hidden, default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    options.wheels = options.wheels and options.wheels.absolute()
    return options


def no_device(size: str, path: Sequence[Path]) -> str:
    """What is wrong if there is no GPU for the full size; empty text if nothing is.

    Another process looks, since this one leaves torch alone.
    """
    if size == "tiny":
        return ""
    code = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(path),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stdout.split()[-1:] == ["True"]:
        return ""
    reason = (done.stderr.splitlines() or ["torch finds no CUDA or ROCm device"])[-1]
    return f"There is no GPU: {reason}. On a CPU, add --tiny to try the script."


# --- sections ------------------------------------------------------------------------------


def run_all(
    options: argparse.Namespace, found: Found, work: Path, path: Sequence[Path], end: float
) -> None:
    """All sections that are asked for and for which time is left; the report grows with them.

    Args:
        path: Folders to put before all others on the path of modules.
        end: When the budget is used up, by `time.monotonic`.
    """
    size = SIZES[options.size]
    (options.out / "gpu.log").unlink(missing_ok=True)
    for name in SECTIONS:
        section = Section(name)
        found.sections.append(section)
        left = end - time.monotonic() - TAKES_DOWN
        if name not in options.sections:
            section.state = "not asked"
        elif left < size.least[name]:
            section.state = "no time"
        else:
            say(f"{name}: begins, {left:.0f} s are left")
            _run(options, section, work, path, left, lambda: write(found, options.out))
        write(found, options.out)


def _run(
    options: argparse.Namespace,
    section: Section,
    work: Path,
    path: Sequence[Path],
    left: float,
    refresh: Callable[[], None],
) -> None:
    """One section in a process of its own, ended when its time is up; its rows are kept."""
    start, records = time.monotonic(), work / f"{section.name}.jsonl"
    most = min(SIZES[options.size].most[section.name], left)
    command = [sys.executable, str(SCRIPT), "--section", section.name, "--work", str(work)]
    command += ["--records", str(records), "--seconds", str(most)]
    command += ["--tiny"] if options.size == "tiny" else []
    command += ["--wheels", str(options.wheels)] if options.wheels else []
    with (options.out / "gpu.log").open("ab") as log, _process(command, path, log) as process:
        while process.poll() is None and time.monotonic() - start < min(most + GRACE, left):
            time.sleep(LOOKS)
            section.seconds = time.monotonic() - start
            rows = read(records)
            if rows != section.tables:
                section.tables = rows
                refresh()
        ended = process.poll()
    section.tables = read(records)
    section.seconds = time.monotonic() - start
    section.state = {None: "cut short", 0: "done"}.get(ended, "failed")


@contextmanager
def _process(
    command: Sequence[str], path: Sequence[Path], log: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended with all that it started when the context ends."""
    process = subprocess.Popen(
        command,
        env=environment(path),
        stdin=subprocess.DEVNULL,
        stdout=log,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(path: Sequence[Path]) -> dict[str, str]:
    """That of a section: the repository's own modules, packages brought along, nothing fetched."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [ROOT / "src", ROOT, *path, *filter(None, before)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUTF8": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def run_section(options: argparse.Namespace) -> int:
    """Within the process of a section: measure, and keep the rows."""
    end = time.monotonic() + options.seconds
    size: Size = SIZES[options.size]
    module, _, function = SECTIONS[options.section].partition(":")
    job = Job(
        section=options.section,
        size=size,
        work=Path(options.work),
        wheels=options.wheels,
        emit=writer(Path(options.records)),
        left=lambda: end - time.monotonic(),
    )
    getattr(import_module(f"benchmarks.gpu_parts.{module}"), function)(job)
    return 0


# --- output --------------------------------------------------------------------------------


def write(found: Found, out: Path) -> None:
    """Both files, each whole at any time."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("gpu.json", json.dumps(as_data(found), indent=1) + "\n"),
        ("gpu.md", markdown(found)),
    ):
        part = out / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)


def command() -> str:
    """The command line, without the places on this machine."""
    shown: list[str] = []
    for argument in sys.argv[1:]:
        if shown[-1:] and shown[-1] in {"--out", "--wheels"}:
            shown.pop()
        elif not argument.startswith(("--out=", "--wheels=")):
            shown.append(argument)
    return f"python benchmarks/gpu.py {shlex.join(shown)}".rstrip()


def say(text: str) -> None:
    """Progress, on standard error: standard output holds the report only."""
    print(text, file=sys.stderr, flush=True)
