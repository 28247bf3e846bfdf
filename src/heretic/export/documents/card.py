"""The model card: what the model is, how it was made, its scores, its user's responsibilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import heretic
from heretic.config.behaviors import name_of
from heretic.export.documents.markdown import table
from heretic.export.documents.measured import measured_text
from heretic.export.request import (
    ExportOptions,
    ExportRequest,
    FullPrecision,
    HeldOut,
    LongReplies,
    Repacked,
    Strategy,
    score_rows,
)
from heretic.export.serving import is_dora, serving_text
from heretic.harness.results import PairedMetric, how_compared
from heretic.records.categories import CategoryTable
from heretic.records.plan import Plan, fit_file
from heretic.records.statistics import after_choice, difference_text
from heretic.records.trial import Score, Trial, words_of
from heretic.system.display import safe
from heretic.system.hub import display_name, is_local, repository_of

if TYPE_CHECKING:
    import jinja2


TAGS = ("heretic", "abliterated")
PROJECT = "Heretic"
_DIVERGENCES = ("kl_divergence",)
_WARNING = """> [!WARNING]
> **The safety behaviour of this model was changed on purpose.** It may answer requests that the
> original declines, and it will not reliably warn, refuse or redirect. No other safeguard was added
> in place of what was removed. What is done with it is its user's responsibility.
"""
_WARNING_OF_OTHERS = """> [!WARNING]
> **The behaviour of this model was changed on purpose, and its safety behaviour may have changed
> with it.** It may answer requests that the original declines, or decline others; only what the
> scores below name was measured. What is done with it is its user's responsibility.
"""


@dataclass(frozen=True, slots=True)
class Aim:
    """The aim of an edit, in the words of the model card.

    Attributes:
        title: What the model is now, as the heading says it after the model's name.
        purpose: The clause that follows "edited so that".
        warning: The warning at the top, in Markdown.
        tags: Tags in addition to `TAGS`.
        declining: Whether the only aim is that the model declines less.
    """

    title: str
    purpose: str
    warning: str
    tags: tuple[str, ...] = ()
    declining: bool = False


LESS_DECLINING = Aim(
    "decensored", "it declines less", _WARNING, ("uncensored", "decensored"), declining=True
)


def aim_of(options: ExportOptions) -> Aim:
    """The aim that the settings imply; without a behaviour or a goal it is to decline less."""
    if not options.behavior and options.goal == "remove":
        return LESS_DECLINING
    named = options.behavior
    behavior = name_of(named) if named else "what its bad prompts trigger"
    purpose = {
        "calibrate": "it declines fewer requests that need not be declined",
        "harden": "it declines more of the requests that should be declined",
    }.get(
        named,
        f"it shows {'more' if options.goal == 'induce' else 'less'} of a behaviour: {behavior}",
    )
    return Aim("edited", purpose, _WARNING_OF_OTHERS)


class HasBaseline(Protocol):
    """The part of an evaluator that `get_readme_intro` reads."""

    @property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""


def model_card(
    request: ExportRequest, strategy: Strategy, base_metadata: dict[str, Any] | None = None
) -> str:
    """The text of `README.md`.

    Args:
        base_metadata: Fields carried over from the base model's card (`base_card.base_metadata`).
    """
    model = request.options.model
    base = base_metadata or {}
    plan, aim = request.trial.plan, aim_of(request.options)
    text = _template().render(
        aim=aim,
        metadata=card_metadata(model, strategy, base, aim),
        intro=_intro(
            model,
            plan,
            request.baseline,
            _reported(request),
            _origin(request)
            + _full_precision_text(request.full_precision)
            + _repacked_text(request.repacked)
            + _held_out_text(request.held_out)
            + _long_text(request.long_replies)
            + _categories_text(request.categories)
            + _benchmarks_text(request.benchmarks)
            + measured_text(request),
            aim,
        ),
        base_link=model_link(model),
        base_literal=json.dumps(display_name(model)),
        strategy=strategy,
        kind="A DoRA" if is_dora(plan) else "A LoRA",
        rank=plan.rank,
        fitted=bool(plan.fits),
        serving=serving_text(plan, strategy, display_name(model)),
        license=base.get("license"),
        version=heretic.__version__,
    )
    return safe(text)  # names and metadata come from elsewhere


def card_metadata(
    model: str,
    strategy: Strategy,
    base_metadata: dict[str, Any],
    aim: Aim = LESS_DECLINING,
) -> str:
    """The YAML head: base model, the base's licence, tags; no licence if the base names none."""
    import yaml  # type: ignore[import-untyped]

    library = "peft" if strategy == "adapter" else base_metadata.get("library_name", "transformers")
    relation = "adapter" if strategy == "adapter" else "finetune"
    # The Hub reads `base_model` as the id of a repository, and a local folder has none.
    base = (
        {}
        if is_local(model)
        else {"base_model": repository_of(model), "base_model_relation": relation}
    )
    data = {
        **base,
        **{name: value for name, value in base_metadata.items() if name != "library_name"},
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": [*TAGS, *aim.tags, *(["lora"] if strategy == "adapter" else [])],
    }
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def get_readme_intro(base_model: str, trial: Trial, evaluator: HasBaseline) -> str:
    """The head of a model card: base model, plan, scores before and after (Markdown).

    Args:
        base_model: Hub id or folder; for a folder only its name is shown.
        trial: The plan and what was measured with it.
        evaluator: Gives the scores of the unedited model (`heretic.evaluator.evaluator.Evaluator`).
    """
    return _intro(base_model, trial.plan, evaluator.baseline, trial.scores, "")


def model_link(model: str) -> str:
    """A Markdown link to a Hub model, or the name of a local one."""
    name = display_name(model)
    return (
        f"`{name}`"
        if is_local(model)
        else f"[{name}](https://huggingface.co/{repository_of(name)})"
    )


def plan_table(plan: Plan) -> str:
    """The plan as a Markdown table, one row per component."""
    rows = [
        [component, *("free" if value is None else f"{value:.4g}" for value in kernel.figures())]
        for component, kernel in plan.kernels
    ]
    return table(["component", *plan.figure_names], rows)


def scores_table(before: tuple[Score, ...], after: tuple[Score, ...]) -> str:
    """Scores of the base and of this model as a Markdown table."""
    rows = [
        [words_of(row.name), _shown(row.before, row.name), _shown(row.after)]
        for row in score_rows(before, after)
    ]
    return table(["score", "base model", "this model"], rows)


def _shown(score: Score | None, baseline_of: str | None = None) -> str:
    if score is not None:
        return score.with_interval()
    return "0 (by definition)" if baseline_of in _DIVERGENCES else "not measured"


def _intro(
    model: str,
    plan: Plan,
    before: tuple[Score, ...],
    after: tuple[Score, ...],
    origin: str,
    aim: Aim = LESS_DECLINING,
) -> str:
    measured = (
        f"{scores_table(before, after)}{origin}"
        if before or after
        else "No scores were measured for this copy.\n"
    )
    return (
        f"# {display_name(model)}, {aim.title}\n\n"
        f"This is {model_link(model)}, edited with {PROJECT} {heretic.__version__} so that "
        f"{aim.purpose}.\n\n"
        f"{aim.warning}\n"
        f"## Scores\n\n{measured}\n"
        f"## Plan\n\n{_vectors(plan)}. Row normalization: {plan.row_normalization}.\n\n"
        f"{plan_table(plan)}"
    )


def _vectors(plan: Plan) -> str:
    """Where the plan's vectors come from."""
    if plan.fits:
        return f"Fitted vectors of rank {plan.rank} ({', '.join(map(fit_file, plan.fits))})"
    scope, index = plan.direction_scope, plan.direction_index
    direction = f"{scope}, at layer {index:.4g}" if index is not None else scope
    return f"Direction: {direction}" + (f", {plan.rank} per layer" if plan.rank > 1 else "")


def _reported(request: ExportRequest) -> tuple[Score, ...]:
    """The scores; with wider intervals if they chose the trial and no fresh prompts report it."""
    if request.held_out is not None:
        return request.scores
    return tuple(after_choice(score, request.compared) for score in request.scores)


def _origin(request: ExportRequest) -> str:
    quantization = request.settings.get("quantization", "none")
    if request.as_recorded:
        return (
            "\nAs recorded in the reproduce.json that this copy was made from: its weights have "
            "the recorded hashes. Nothing was measured again.\n"
        )
    if request.verified is not None:
        how = "" if quantization == "none" else f" and quantised ({quantization}) as in the search"
        return f"\nMeasured on these files, reloaded from disk after saving{how}.\n"
    return "\nMeasured with the edit applied while running, not yet on these files.\n"


def _full_precision_text(full: FullPrecision | None) -> str:
    if full is None:
        return ""
    return (
        "\nThe search ran on the quantised model. In full precision, against the original in full "
        f"precision:\n\n{scores_table(full.before, full.after)}"
    )


def _repacked_text(packed: Repacked | None) -> str:
    if packed is None:
        return ""
    return (
        f"\nThe weights are quantised as the base's are ({packed.label}). Only edited tensors were "
        "packed anew, which rounds them; all others are the base's, to the byte. On "
        f"{packed.prompts} good prompts, the edit moves the first token's distribution by a KL of "
        f"{packed.edit:.4f} nats from the original's, and this rounding moves it by "
        f"{packed.rounding:.4f} nats from that of the edited model.\n"
    )


def _held_out_text(held_out: HeldOut | None) -> str:
    if held_out is None:
        return ""
    return (
        "\nThe scores above are on the prompts by which the search chose the edit. On "
        f"{held_out.good} good and {held_out.bad} bad prompts that it never saw, with the edit "
        "applied while running:\n\n"
        f"{scores_table(held_out.before, held_out.after)}"
    )


def _long_text(found: LongReplies | None) -> str:
    if found is None:
        return ""
    return (
        "\nShort replies hide loops and late refusals, and the first token's divergence hides what "
        f"changes later. With replies of up to {found.tokens} tokens to the search's prompts, and "
        "the edit applied while running:\n\n"
        f"{_differences_table(found.before, found.after)}"
        f"{_saved_text(found.saved)}"
    )


def _saved_text(saved: Sequence[Score]) -> str:
    """Scores of the files on long replies, in a sentence."""
    if not saved:
        return ""
    told = ", ".join(f"{words_of(score.name)} {score.with_interval()}" for score in saved)
    return f"\nThe files themselves, loaded again, on the first of these prompts: {told}.\n"


def _differences_table(before: tuple[Score, ...], after: tuple[Score, ...]) -> str:
    """Scores, and the mean change of each from prompt to prompt, with its interval."""
    rows = [
        [
            words_of(row.name),
            _shown(row.before, row.name),
            _shown(row.after),
            difference_text(row.before, row.after),
        ]
        for row in score_rows(before, after)
    ]
    return table(["score", "base model", "this model", "difference, 95% interval"], rows)


def _categories_text(tables: Sequence[CategoryTable]) -> str:
    heading = ["category", "prompts", "base model", "this model"]
    return "".join(
        f"\n{found.score.replace('_', ' ').capitalize()} by category of the prompts "
        f"({found.prompts.replace('_', ' ')}):\n\n"
        f"{table(heading, [list(row.texts()) for row in found.rows])}"
        for found in tables
    )


def _benchmarks_text(rows: Sequence[PairedMetric]) -> str:
    if not rows:
        return ""
    heading = [
        "task",
        "metric",
        "documents",
        "base model",
        "this model",
        "difference",
        "95% interval",
    ]
    return (
        "\nBenchmarks of the [lm-evaluation-harness]"
        "(https://github.com/EleutherAI/lm-evaluation-harness), with the model's chat template if "
        f"it has one and the edit applied while running. {how_compared(rows)}\n\n"
        f"{table(heading, [list(row.texts()) for row in rows])}"
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    template = resources.files("heretic.export.documents") / "card.md.jinja"
    text = template.read_text(encoding="utf-8")
    # The output is Markdown, not HTML, and is built from our own records.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701
        keep_trailing_newline=True,
    )
    return environment.from_string(text)
