"""The stages in order, as functions with explicit inputs and typed results.

    settings -> model -> prompts -> residuals -> directions -> [plan -> scores] x trials -> front

Interactive use, use by settings alone, the library and reproduction call these functions; they are
not modes inside them. Values found at run time go into the run's manifest, never into the settings.
"""

from heretic.pipeline.audit import audit_reproduced, audit_saved
from heretic.pipeline.categories import category_tables
from heretic.pipeline.checks import check_model
from heretic.pipeline.detector import check_detector, other_detector
from heretic.pipeline.export import Exported, export_trial, upload_trial
from heretic.pipeline.finalists import Finalists, score_finalists
from heretic.pipeline.held_out import held_out_scores
from heretic.pipeline.identity import fingerprint
from heretic.pipeline.known import load_run
from heretic.pipeline.prompts import load_prompts
from heretic.pipeline.run import (
    Session,
    new_manifest,
    open_folder,
    prepare,
    search,
    start_plans_of,
)
from heretic.pipeline.single import prepare_directions
from heretic.pipeline.stages import (
    choose_prefix,
    compute_directions,
    load_judged,
    load_model,
    model_and_directions,
    scores_line,
)
from heretic.prompts import PromptSets
from heretic.runs.plans import read_plans

__all__ = [
    "Exported",
    "Finalists",
    "PromptSets",
    "Session",
    "audit_reproduced",
    "audit_saved",
    "category_tables",
    "check_detector",
    "check_model",
    "choose_prefix",
    "compute_directions",
    "export_trial",
    "fingerprint",
    "held_out_scores",
    "load_judged",
    "load_model",
    "load_prompts",
    "load_run",
    "model_and_directions",
    "new_manifest",
    "open_folder",
    "other_detector",
    "prepare",
    "prepare_directions",
    "read_plans",
    "score_finalists",
    "scores_line",
    "search",
    "start_plans_of",
    "upload_trial",
]
