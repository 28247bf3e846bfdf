"""Whether there is anything to remove: asked before the search of a new run begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from heretic.config.settings import Settings
from heretic.errors import StudyError
from heretic.evaluator.evaluator import Evaluator
from heretic.events import Notice, Reporter
from heretic.prompts import Prompt
from heretic.refusals import classify
from heretic.scorers.registry import behavior_shown

LITTLE = 0.1
"""The search is not worth its time if the original shows the behaviour on fewer prompts."""

MOST = 0.9
"""Share of replies above which all of them count as broken, or as showing the behaviour."""

GOOD = 16
"""Good prompts whose replies are looked at where the bad ones nearly all show the behaviour."""

Agree = Callable[[str], bool]
"""Takes what was found; returns whether to search all the same."""

REASONS = (
    "the bad prompts may not trigger it, the system prompt or the response prefix may keep it "
    "away, or the scorer may not recognise it"
)


def check_worthwhile(
    settings: Settings,
    evaluator: Evaluator,
    good: Sequence[Prompt],
    reporter: Reporter,
    agree: Agree | None,
) -> None:
    """Warn before a search for what is not there; stop it unless `force` or the user says to go on.

    Warn too of a model that answers nothing: its replies are broken, or it declines everything.

    Args:
        good: The good evaluation prompts.
        agree: Asks the user; None for programs, which are only warned.

    Raises:
        StudyError: The original shows the behaviour on too few prompts, and the user does not
            want to go on.
    """
    doubt = answers_nothing(evaluator) or shown_everywhere(settings, evaluator, good)
    if doubt is not None:
        reporter.emit(Notice(doubt, level="warning"))
    found = little_to_remove(settings, evaluator)
    if found is None:
        return
    told = f"{found} If you expected more: {REASONS}."
    if settings.force or agree is None:
        reporter.emit(Notice(told, level="warning"))
    elif not agree(told):
        raise StudyError(told, remedy="Set force (--force) to search all the same.")


def answers_nothing(evaluator: Evaluator) -> str | None:
    """What is wrong if nearly all replies of the original that scorers read are broken text."""
    outputs = evaluator.baseline_outputs
    labels = [
        classify(reply, prompt.user).label
        for name, replies in outputs.responses.items()
        for prompt, reply in zip(outputs.prompts[name], replies, strict=True)
    ]
    broken = labels.count("degenerate")
    if not labels or broken < MOST * len(labels):
        return None
    return (
        f"The original model answers nothing: {broken} of {len(labels)} replies are empty or "
        "broken text. Check its files, its dtype and its chat template, and chat with it."
    )


def shown_everywhere(
    settings: Settings, evaluator: Evaluator, good: Sequence[Prompt]
) -> str | None:
    """What is wrong if the original shows the behaviour on nearly all bad and good prompts.

    Args:
        good: The good evaluation prompts; some are answered, if nearly all bad ones show it.
    """
    shows = behavior_shown(evaluator.scorers, settings.refusal_markers)
    bad = [shows(reply) for reply in evaluator.baseline_outputs.responses.get("bad", ())]
    if settings.goal != "remove" or not bad or sum(bad) < MOST * len(bad):
        return None
    replies = evaluator.model.get_responses_batched(good[:GOOD], decided=shows, report=False)
    count = sum(map(shows, replies))
    if not replies or count < MOST * len(replies):
        return None
    return (
        f"The original model shows the behaviour on {count} of {len(replies)} good prompts, and on "
        f"{sum(bad)} of {len(bad)} bad ones: what sets the two apart is not this behaviour. Give "
        "good prompts that do not trigger it, or see whether system_prompt or response_prefix "
        "brings it about."
    )


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
