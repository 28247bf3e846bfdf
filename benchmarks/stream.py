"""Measures saving a model from its base's files: memory, and time against a plain copy.

    python benchmarks/stream.py [--gigabytes N] [--shard N] [--repeats N] [--work FOLDER]

Makes a checkpoint of random bfloat16 weights with a Llama's names and shapes (N GB, default 2, in
shards of at most `--shard` GB, default 5; less where the disk has not three times that free) in a
temporary folder, or in one inside `--work`. Then a plain copy and streams (`none` and `full`, all
layers, one direction), each in a fresh process and with fsync, take turns; medians count. Writes
`benchmarks/stream.md` and deletes the folder.

Exit status 1 if a stream takes more than twice the time of the copy, or 3 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

GB = 10**9
HIDDEN, INNER, KEYS = 4096, 14336, 1024
WAYS = ("copy", "none", "full")
TARGET_TIMES, TARGET_GB = 2.0, 3.0
RESULT = Path(__file__).with_suffix(".md")


def layer_shapes(layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of one layer, as in an 8B Llama."""
    prefix = f"model.layers.{layer}."
    yield f"{prefix}self_attn.q_proj.weight", (HIDDEN, HIDDEN)
    yield f"{prefix}self_attn.k_proj.weight", (KEYS, HIDDEN)
    yield f"{prefix}self_attn.v_proj.weight", (KEYS, HIDDEN)
    yield f"{prefix}self_attn.o_proj.weight", (HIDDEN, HIDDEN)
    yield f"{prefix}mlp.gate_proj.weight", (INNER, HIDDEN)
    yield f"{prefix}mlp.up_proj.weight", (INNER, HIDDEN)
    yield f"{prefix}mlp.down_proj.weight", (HIDDEN, INNER)
    yield f"{prefix}input_layernorm.weight", (HIDDEN,)


def make_checkpoint(folder: Path, size: float, shard: float) -> None:
    """Write about `size` bytes of weights in shards of at most `shard` bytes."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    written, held, layer = 0, 0, 0

    def flush() -> None:
        nonlocal held
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        tensors.clear()
        held = 0

    while written < size:
        for name, shape in layer_shapes(layer):
            tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
            if tensors and held + tensor.nbytes > shard:
                flush()
            tensors[name] = tensor
            held, written = held + tensor.nbytes, written + tensor.nbytes
        layer += 1
    flush()
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def copy(source: Path, destination: Path) -> None:
    """The plain copy to compare with."""
    for path in source.iterdir():
        shutil.copyfile(path, destination / path.name)


def stream(source: Path, destination: Path, variant: str) -> None:
    """Edit every output and down projection while copying."""
    from heretic.events import Silent
    from heretic.export.safetensors.checkpoint import read_checkpoint
    from heretic.export.safetensors.stream import Edit, TensorEdit, write_streamed

    checkpoint = read_checkpoint(source)
    assert checkpoint is not None
    basis = torch.nn.functional.normalize(torch.randn(1, HIDDEN))
    edit = Edit(basis, (1.0,), variant)  # type: ignore[arg-type]
    written = ("o_proj.weight", "down_proj.weight")
    edits = [TensorEdit(key, edit) for key in checkpoint.tensors if key.endswith(written)]
    write_streamed(checkpoint, edits, destination, Silent())


def work(way: str, source: Path, destination: Path) -> None:
    """One measured process: prints seconds and the peak of its memory in GB."""
    start, before = time.perf_counter(), time.process_time()
    destination.mkdir()
    if way == "copy":
        copy(source, destination)
    else:
        stream(source, destination, way)
    for path in destination.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    seconds, processor = time.perf_counter() - start, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"seconds": seconds, "processor": processor, "memory": peak * unit / GB}))


def measured(way: str, source: Path, destination: Path) -> dict[str, float]:
    """Run `work` in a fresh process and delete what it wrote."""
    command = [sys.executable, __file__, "--way", way, str(source), str(destination)]
    try:
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        shutil.rmtree(destination, ignore_errors=True)
    return dict(json.loads(output))


def report(runs: dict[str, list[dict[str, float]]], size: float, shards: int) -> tuple[str, bool]:
    """The table as Markdown, and whether the targets are met."""
    median = {
        way: {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        for way, rows in runs.items()
    }
    plain = median["copy"]["seconds"]
    lines = [
        "# Saving from the base's files",
        "",
        (
            f"A checkpoint of {size / GB:.1f} GB in {shards} shards, bfloat16; all output and down "
            f"projections edited, {torch.get_num_threads()} thread(s), medians of "
            f"{len(runs['copy'])} runs in turn, fsync included. Made by `{command_line()}`."
        ),
        "",
        "| | seconds (all runs) | times the copy | processor seconds | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, row in median.items():
        every = ", ".join(f"{run['seconds']:.1f}" for run in runs[way])
        lines.append(
            f"| {'plain copy' if way == 'copy' else f'edit `{way}`'} | {row['seconds']:.1f} "
            f"({every}) | {row['seconds'] / plain:.2f} | {row['processor']:.1f} | "
            f"{row['memory']:.2f} GB |"
        )
    lines += ["", f"Python {platform.python_version()}, torch {torch.__version__}.", ""]
    good = all(
        row["seconds"] <= TARGET_TIMES * plain and row["memory"] <= TARGET_GB
        for row in median.values()
    )
    return "\n".join(lines), good


def command_line() -> str:
    """How this was called, without places on this machine."""
    given = [f"{name} {value}" for name, value in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]
    return " ".join(["python benchmarks/stream.py", *(a for a in given if "--work" not in a)])


def main() -> int:
    """Make the checkpoint, measure in turn, write the table."""
    parser = argparse.ArgumentParser(description="Memory and time of saving from files.")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shard", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--way", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way and options.way[0] == "make":
        make_checkpoint(Path(options.way[1]), float(options.way[2]), options.shard * GB)
        return 0
    if options.way:
        work(options.way[0], Path(options.way[1]), Path(options.way[2]))
        return 0
    with tempfile.TemporaryDirectory(dir=options.work, prefix="heretic-stream-") as folder:
        room = shutil.disk_usage(folder).free / 3
        source = Path(folder) / "base"
        source.mkdir()
        size = min(options.gigabytes * GB, room)
        # In a process of its own: on Linux a child's peak begins at what its parent held.
        arguments = ["--shard", str(options.shard), "--way", "make", str(source), str(size)]
        subprocess.run([sys.executable, __file__, *arguments], check=True)
        files = list(source.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:
                runs[way].append(measured(way, source, Path(folder) / "out"))
    text, good = report(runs, size, len(files))
    RESULT.write_text(text, encoding="utf-8")
    print(text)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
