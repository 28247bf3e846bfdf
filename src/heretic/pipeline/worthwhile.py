"""Whether there is anything to remove: asked before the search of a new run begins."""

from __future__ import annotations

from collections.abc import Callable

from heretic.config.settings import Settings
from heretic.errors import StudyError
from heretic.evaluator.evaluator import Evaluator
from heretic.events import Notice, Reporter

LITTLE = 0.1
"""The search is not worth its time if the original shows the behaviour on fewer prompts."""

Agree = Callable[[str], bool]
"""Takes what was found; returns whether to search all the same."""

REASONS = (
    "the bad prompts may not trigger it, the system prompt or the response prefix may keep it "
    "away, or the scorer may not recognise it"
)


def check_worthwhile(
    settings: Settings, evaluator: Evaluator, reporter: Reporter, agree: Agree | None
) -> None:
    """Warn before a search for what is not there; stop it unless `force` or the user says to go on.

    Args:
        agree: Asks the user; None for programs, which are only warned.

    Raises:
        StudyError: The original shows the behaviour on too few prompts, and the user does not
            want to go on.
    """
    found = little_to_remove(settings, evaluator)
    if found is None:
        return
    told = f"{found} If you expected more: {REASONS}."
    if settings.force or agree is None:
        reporter.emit(Notice(told, level="warning"))
    elif not agree(told):
        raise StudyError(told, remedy="Set force (--force) to search all the same.")


def little_to_remove(settings: Settings, evaluator: Evaluator) -> str | None:
    """What is wrong if the behaviour to be removed hardly shows on the bad evaluation prompts.

    Returns:
        One sentence; None if enough prompts show it, or if no scorer that is minimized says so as a
        share of these prompts.
    """
    if settings.goal != "remove":
        return None
    outputs = evaluator.baseline_outputs
    shares = {
        scorer.name: (share, score)
        for scorer, score in zip(evaluator.scorers, evaluator.baseline, strict=True)
        if scorer.optimization == "minimize" and "bad" in scorer.needs.responses
        if (share := scorer.shown_share(outputs, score)) is not None
    }
    if not shares or any(share >= LITTLE for share, _ in shares.values()):
        return None
    told = ", ".join(f"{name} {score.display}" for name, (_, score) in shares.items())
    return f"There is hardly anything to remove: the original model has {told}."
