"""Batches of searches on tiny models, in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from heretic.batch.file import read_batch
from heretic.batch.job import Job, load_job
from tests.support import tiny

DEFAULTS = """
[defaults]
model = "model"
n_trials = 2
search = "tpe"
seed = 7
force = true
dtypes = ["float32"]
max_response_length = 3
report_length = 16
response_prefix = ""
refusal_markers = ["`", "%"]
scorers = [{ plugin = "keyword", name = "refusals" }, { plugin = "kl_divergence" }]
good_prompts = { dataset = "good.txt", split = "train[:8]" }
bad_prompts = { dataset = "bad.txt", split = "train[:8]" }
good_evaluation_prompts = { dataset = "good.txt", split = "train[8:]" }
bad_evaluation_prompts = { dataset = "bad.txt", split = "train[8:]" }
"""

BROKEN = """
from heretic.scorers import Needs, Scorer


class Broken(Scorer):
    needs = Needs(responses=frozenset({"good"}))

    def values(self, outputs, baseline):
        raise ValueError("on purpose")
"""


def make_place(folder: Path) -> None:
    """A model, prompts, and a scorer that fails."""
    tiny.folder(folder / "model")
    tiny.prompt_files(folder)
    (folder / "broken.py").write_text(BROKEN, encoding="utf-8")


def write(file: Path, *jobs: str, defaults: str = DEFAULTS) -> Path:
    """A batch file with these lines as jobs, each without its heading."""
    file.write_text(defaults + "".join(f"\n[[job]]\n{job}\n" for job in jobs), encoding="utf-8")
    return file


WITH_BROKEN = 'scorers = [{ plugin = "keyword" }, { plugin = "broken.py:Broken" }]'
"""Of a job that passes all checks and fails."""


def load(file: Path) -> list[Job]:
    """The jobs of a batch file."""
    return [load_job(file, table, print) for table in read_batch(file)]
