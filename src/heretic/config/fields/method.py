"""The group Method of the settings."""

from __future__ import annotations

from typing import Literal

from heretic.config.declaration import FieldGroup, setting
from heretic.records.choices import RowNormalization


class MethodFields(FieldGroup):
    """How directions are made, and how weights are edited."""

    behavior: str = setting(
        "",
        "Method",
        "Ready configuration of a behaviour other than refusal; whatever you set yourself "
        "overrides it. The name of one that comes with Heretic, or a folder or TOML file of your "
        "own (docs/behaviors.md).",
        example="slop",
        scores=False,  # the settings that it sets do
    )
    direction_method: Literal["mean", "median"] = setting(
        "mean", "Method", "How the centre of residuals is computed: mean, or (geometric) median."
    )
    orthogonalize_direction: bool = setting(
        True,
        "Method",
        "Remove from each direction its component along the mean of the good residuals "
        "(projected abliteration).",
    )
    row_normalization: RowNormalization = setting(
        "full",
        "Method",
        "Edit variant: none, pre (rows normalized, scaled back), full (row norms preserved).",
    )
    winsorization_quantile: float = setting(
        1.0,
        "Method",
        "Each residual is winsorized at this quantile of its absolute components; 1.0 turns it "
        "off.",
        gt=0.0,
        le=1.0,
    )
    max_rank: int = setting(
        1,
        "Method",
        "Largest number of directions that a plan may remove from a layer. They are the difference "
        "of means, the difference for protected prompts if there are any, and directions along "
        "which groups of bad prompts differ.",
        ge=1,
        le=8,
    )
