"""All settings in one model. Where values come from is `heretic.config.settings`."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from heretic.config.fields.export import ExportFields
from heretic.config.fields.generation import GenerationFields
from heretic.config.fields.method import MethodFields
from heretic.config.fields.model import ModelFields
from heretic.config.fields.prompts import PromptsFields
from heretic.config.fields.research import ResearchFields
from heretic.config.fields.scorers import ScorersFields
from heretic.config.fields.search import SearchFields
from heretic.config.fields.workers import WorkersFields


class SettingsFields(
    ResearchFields,
    ExportFields,
    ScorersFields,
    WorkersFields,
    SearchFields,
    MethodFields,
    PromptsFields,
    GenerationFields,
    ModelFields,
):
    """Every setting, and what must hold between settings of different groups.

    pydantic collects fields from the last base to the first: the order of `GROUPS`.
    """

    @model_validator(mode="before")
    @classmethod
    def _default_scorers_follow_the_goal(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("goal") == "induce" and "scorers" not in data:
            refusals, *others = cls.model_fields["scorers"].get_default()
            return {
                **data,
                "scorers": (refusals.model_copy(update={"optimization": "maximize"}), *others),
            }
        return data

    @model_validator(mode="after")
    def _something_is_induced(self) -> Self:
        if self.goal == "induce" and all(s.optimization != "maximize" for s in self.scorers):
            raise ValueError(
                "goal is induce, but no scorer is maximized: set its `optimization`, or leave "
                "`scorers` at the default"
            )
        return self

    @model_validator(mode="after")
    def _a_fit_removes(self) -> Self:
        if self.search == "fitted" and self.goal == "induce":
            raise ValueError(
                "search is fitted, which pushes replies away and cannot induce a behaviour: leave "
                "`search` at auto"
            )
        return self

    @model_validator(mode="after")
    def _scorers_fit_together(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two scorers are named {', '.join(twice)}")
        lost = [name for name in self.scorer if name not in names]
        if lost:
            raise ValueError(
                f"[scorer.{lost[0]}] belongs to no scorer; the scorers are {', '.join(names)}"
            )
        return self
