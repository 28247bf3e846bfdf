"""The tables among the settings: prompt sets, sets of items, and scorers."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from heretic.config.declaration import Optionally
from heretic.records.choices import Optimization

SCORERS = {
    "refusal": "heretic.scorers.refusal:RefusalDetector",
    "over_refusal": "heretic.scorers.refusal:OverRefusal",
    "keyword": "heretic.scorers.keyword:KeywordRefusals",
    "kl_divergence": "heretic.scorers.kl_divergence:KLDivergence",
    "continuation_kl": "heretic.scorers.fidelity:ContinuationKL",
    "greedy_agreement": "heretic.scorers.fidelity:GreedyAgreement",
    "perplexity": "heretic.scorers.fidelity:Perplexity",
    "capability": "heretic.scorers.capability:Capability",
    "reply_similarity": "heretic.scorers.fidelity:ReplySimilarity",
    "reply_length": "heretic.scorers.fidelity:ReplyLength",
    "stock_phrases": "heretic.scorers.style:StockPhrases",
    "jokes": "heretic.scorers.style:Jokes",
    "agreement": "heretic.scorers.style:Agreement",
    "words": "heretic.scorers.style:ReplyWords",
    "recognition": "heretic.scorers.recognition:Recognition",
    "llm_judge": "heretic.scorers.judge:LLMJudge",
    "classifier_judge": "heretic.scorers.judge:ClassifierJudge",
}
"""Scorers that come with Heretic, by the short names that settings can use."""

REPORTED = frozenset({SCORERS["capability"], SCORERS["recognition"]})
"""Scorers whose optimization is `none` unless it is set."""

SENDING_OPTIONS = ("endpoint", "api_key_env")
"""Options of scorers that decide where replies are sent, and with which key."""

ADDED_SCORERS: tuple[str, ...] = ()
"""Names of scorers that the default of `scorers` gained later, with optimization `none`. The
fingerprint leaves them out, so that runs made before go on under their names."""


_OWN_PLUGIN = re.compile(r"heretic\.scorers(\.[A-Za-z_]\w*)+:[A-Za-z_]\w*")


def is_own_plugin(plugin: str) -> bool:
    """Whether `module:Class` belongs to `heretic.scorers`, and is not a file with such a name."""
    module = plugin.partition(":")[0]
    return _OWN_PLUGIN.fullmatch(plugin) is not None and not module.endswith(".py")


class DatasetSpecification(BaseModel):
    """Where a set of prompts comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(
        description="Hub id, folder written by save_to_disk, or csv, jsonl, json, parquet or txt "
        "file (txt: one prompt a line)."
    )
    config: Annotated[str | None, Optionally] = Field(
        default=None,
        description="Subset of a data set that has several, such as its languages. Unset: the "
        "only one, or the one that the data set says.",
    )
    commit: Annotated[str | None, Optionally] = Field(
        default=None, description="Revision of a Hub data set: branch, tag or commit."
    )
    split: str = Field(
        default="train",
        description="Split, with an optional slice: train[:400], [10%:]. Single files take a "
        "slice with or without a split name.",
    )
    column: str = Field(default="text", description="Column that holds the prompts.")
    category_column: Annotated[str | None, Optionally] = Field(
        default=None,
        description="Column that holds the category of each prompt, by which figures of the chosen "
        "trial are shown. Prompts whose cell is empty have the category none.",
    )
    prefix: str = Field(default="", description="Text put before every prompt.")
    suffix: str = Field(default="", description="Text put after every prompt.")
    system_prompt: Annotated[str | None, Optionally] = Field(
        default=None, description="System prompt for this set, in place of the general one."
    )
    residual_plot_label: Annotated[str | None, Optionally] = Field(
        default=None, description="Label of this set in residual plots."
    )
    residual_plot_color: Annotated[str | None, Optionally] = Field(
        default=None, description="Colour of this set in residual plots (a matplotlib colour)."
    )


ONE, SEVERAL = "one data set", "several data sets"
"""Tags of the two forms; pydantic puts them into the place of an error."""


def _form(value: Any) -> str:
    return SEVERAL if isinstance(value, list | tuple) else ONE


Datasets = Annotated[
    Annotated[DatasetSpecification, Tag(ONE)]
    | Annotated[tuple[DatasetSpecification, ...], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(_form),
]
"""A prompt set: one data set, or several, whose prompts follow one another."""


def without_tags(place: tuple[int | str, ...]) -> tuple[str, ...]:
    """The place of an error as users know it."""
    return tuple(str(part) for part in place if part not in (ONE, SEVERAL))


def each_of(datasets: Datasets) -> tuple[DatasetSpecification, ...]:
    """The data sets of a prompt set, in their order."""
    return datasets if isinstance(datasets, tuple) else (datasets,)


class ItemSpecification(DatasetSpecification):
    """Where a set of contexts with candidate endings comes from; `column` holds the contexts."""

    endings: Annotated[str | tuple[str, ...] | None, Optionally] = Field(
        default=None,
        description="Column that holds the list of endings, or one column for each ending. Unset: "
        "the last word of each text is its only ending.",
    )
    right: Annotated[str | None, Optionally] = Field(
        default=None,
        description="Column that says which ending is right: its number, counted from 0, its "
        "label or its text.",
    )
    delimiter: str = Field(default=" ", description="Text between a context and an ending.")

    @model_validator(mode="after")
    def _columns_belong_together(self) -> ItemSpecification:
        if (self.endings is None) != (self.right is None):
            raise ValueError("`endings` and `right` need each other: set both, or neither")
        return self


class ScorerSpecification(BaseModel):
    """A metric that judges every trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugin: str = Field(
        description="The name of a scorer that comes with Heretic, module:Class, or file.py:Class."
    )
    optimization: Optimization = Field(
        default="minimize",
        description="minimize, maximize, or none (reported only; the default of capability).",
    )
    name: str = Field(
        default="",
        description="Name of the score; by default made from the plugin's class name.",
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, data: Any) -> Any:
        """Replace a short name by the plugin that it stands for; name the score after the class."""
        if not isinstance(data, dict) or not isinstance(data.get("plugin"), str):
            return data
        plugin = data["plugin"]
        class_name = plugin.rpartition(":")[2]
        own_name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()
        full = SCORERS.get(plugin, plugin)
        reported = {"optimization": "none"} if full in REPORTED else {}
        return {**reported, **data, "plugin": full, "name": data.get("name") or own_name}

    @field_validator("plugin")
    @classmethod
    def _names_a_class(cls, plugin: str) -> str:
        if not all(plugin.rpartition(":")[::2]):
            raise ValueError(
                f"should be module:Class, file.py:Class or one of {', '.join(SCORERS)}"
            )
        return plugin
