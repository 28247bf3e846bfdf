"""What can be checked of a job before any job starts: all that its own start would check."""

from __future__ import annotations

from heretic.batch.job import ENDING, Job, run_of
from heretic.errors import RunError
from heretic.events import Silent
from heretic.pipeline.identity import fingerprint
from heretic.pipeline.opening import check_before_work
from heretic.pipeline.prompts import load_prompts
from heretic.pipeline.sharing import check_storage
from heretic.pipeline.workers import check_workers
from heretic.runs.folder import RunFolder, digest
from heretic.scorers import load_scorers
from heretic.system.files import check_writable
from heretic.tracking.reporter import check_tracker


def check_start(job: Job) -> None:
    """Check that the job can be started: model, places, scorers, prompts, workers, storage.

    Raises:
        HereticError: Something of it is missing or contradicts the rest.
    """
    check_workers(job.settings)
    check_storage(job.settings)
    check_tracker(job.settings)
    scorers = check_before_work(job.settings)
    check_writable(job.folder)
    load_prompts(job.settings, Silent(), scorers=scorers)


def check_same(job: Job) -> None:
    """Check that what a finished job was about is what its settings still name.

    Raises:
        RunError: The model, prompts or scorers have changed since.
        HereticError: They cannot be read any more.
    """
    prompts = load_prompts(job.settings, Silent(), scorers=load_scorers(job.settings))
    path = run_of(job)
    manifest = None if path is None else RunFolder(path).read_manifest()
    wanted = digest(fingerprint(job.settings, prompts))
    if manifest is None or digest(manifest.fingerprint) != wanted:
        raise RunError(
            "Its model, its prompts or its scorers are not those that it has finished with, under "
            "the same names.",
            remedy="Restore them (of a model on the Hub, model_commit names the revision), give "
            f"the job another name, or delete {job.folder / ENDING} to do it again.",
        )
