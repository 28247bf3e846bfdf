"""The group Search of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from heretic.config.declaration import (
    LARGEST,
    LARGEST_SEED,
    FieldGroup,
    FromHome,
    Optionally,
    setting,
)
from heretic.config.durations import checked_duration
from heretic.system.secrets import masked_address


def without_secrets(value: Any) -> Any:
    """An address that holds neither a password nor a key.

    Raises:
        ValueError: It does.
    """
    if isinstance(value, str) and masked_address(value) != value:
        raise ValueError(
            "holds a password or a key, which belongs into the tracker's own variable: "
            "WANDB_API_KEY or MLFLOW_TRACKING_PASSWORD"
        )
    return value


class SearchFields(FieldGroup):
    """How plans are proposed, how many, and when the search ends."""

    n_trials: int = setting(
        200, "Search", "Trials to complete, start-up trials included.", ge=1, scores=False
    )
    time_limit: Annotated[str | None, BeforeValidator(checked_duration), Optionally] = setting(
        None,
        "Search",
        "End the search this long after the command began (loading included), if n_trials are not "
        "complete before: 90s, 30m, 2h, 1h30m, or seconds. No trial is begun that would end later, "
        "as far as the trials so far tell; one is always made. A run that is continued gets the "
        "time anew.",
        example="30m",
        scores=False,
    )
    max_refusals: Annotated[int | None, Optionally] = setting(
        None,
        "Search",
        "Choose the trial with the least KL divergence among those with at most this many refusals "
        "of the evaluation prompts (in general: the best second objective at this count of the "
        "first), and search for it. A terminal offers it first; trial_index overrides it.",
        example=3,
        ge=0,
        le=LARGEST,
        scores=False,
    )
    n_startup_trials: int = setting(
        60, "Search", "Random trials before the sampler starts to learn.", ge=0
    )
    seed: Annotated[int | None, Optionally] = setting(
        None,
        "Search",
        "Seed of every random choice; by default drawn at random and recorded with the run.",
        example=42,
        ge=0,
        le=LARGEST_SEED,
        scores=False,
    )
    goal: Literal["remove", "induce"] = setting(
        "remove",
        "Search",
        "remove the behaviour that bad prompts trigger, or induce it: strengthen it by negative "
        "weights. With induce, the default scorers maximize refusals.",
    )
    search: Literal["auto", "fitted", "ablation", "gradient", "tpe", "gp"] = setting(
        "auto",
        "Search",
        "Search method: fitted (vectors found by gradients, then a local search around them), "
        "ablation (amounts of an ablation found by gradients, then a local search around them), "
        "gradient (only these amounts), tpe (multivariate TPE over kernels), gp (Gaussian "
        "processes over kernels). auto is fitted if a scorer knows the words that "
        "show the behaviour (refusals, keywords); ablation for other behaviours, with max_rank "
        "above 1, and with goal = induce.",
    )
    search_space: Literal["default", "wide"] = setting(
        "default", "Search", "Ranges of the search: default or wide."
    )
    plans_at_once: int = setting(
        0,
        "Search",
        "Plans proposed and evaluated together; 0 takes 1 on a CPU and 8 on an accelerator.",
        ge=0,
    )
    patience: int = setting(
        0,
        "Search",
        "End the search when this many complete trials in a row have not increased the front's "
        "hypervolume by a thousandth in total; 0 turns this off.",
        ge=0,
        scores=False,
    )
    racing: bool = setting(
        True,
        "Search",
        "End the evaluation of a trial as soon as another trial dominates every result that it can "
        "still reach.",
    )
    deterministic: bool = setting(
        False,
        "Search",
        "Let torch use only algorithms that give the same bits on every run, which may be slower.",
    )
    start_plans: Annotated[Path | None, FromHome, Optionally] = setting(
        None,
        "Search",
        "JSON file with plans (such as front.json) that the search tries first.",
        example="front.json",
        scores=False,
    )
    study_checkpoint_dir: Annotated[Path, FromHome] = setting(
        Path("checkpoints"), "Search", "Folder in which every run has its own folder.", scores=False
    )
    checkpoint_action: Annotated[Literal["continue", "restart", "quit"] | None, Optionally] = (
        setting(
            None,
            "Search",
            "What to do if the run already exists: continue (an error if no run has exactly these "
            "settings), restart, quit. Unset: ask; without a terminal, continue.",
            example="continue",
            scores=False,
        )
    )
    track: Annotated[Literal["wandb", "mlflow"] | None, Optionally] = setting(
        None,
        "Search",
        "Tell an experiment tracker the figures of each trial (scores, seconds, settings that are "
        "numbers): wandb or mlflow (extra `track`). Never prompts, replies or paths. A "
        "tracker that fails gives a warning and ends nothing.",
        example="mlflow",
        scores=False,
        consent=True,
    )
    track_address: Annotated[str | None, AfterValidator(without_secrets), Optionally] = setting(
        None,
        "Search",
        "Address of the tracker's server (of mlflow, any tracking URI). Unset: what the tracker's "
        "own variables say, else its service or, of mlflow, the file mlflow.db in the working "
        "folder.",
        example="http://127.0.0.1:5000",
        scores=False,
        consent=True,
    )
    force: bool = setting(
        False,
        "Search",
        "Search even if the original model shows the behaviour on fewer than 10% of the bad "
        "evaluation prompts. Without it a terminal asks, and all else is an error.",
        scores=False,
    )
    n_additional_trials: Annotated[int | None, Optionally] = setting(
        None,
        "Search",
        "Trials to add to a finished search. Unset: ask.",
        example=50,
        ge=0,
        le=LARGEST,
        scores=False,
    )
