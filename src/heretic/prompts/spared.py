"""Spares categories of bad prompts: they leave the search, and its directions are kept off them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from heretic.errors import PromptError
from heretic.records.category_names import category_key

if TYPE_CHECKING:
    from heretic.prompts import Prompt, PromptSets

_SHOWN_AT_MOST = 12


def spare(sets: PromptSets, keep: Sequence[str]) -> PromptSets:
    """Take the prompts of some categories out of the bad sets.

    Those for directions become protected prompts; the others, of the evaluation and of the held-out
    split, become `spared` ones. A prompt that stands in a spared category and, with the same text,
    in another one is spared in every set.

    Args:
        keep: Names of categories; case and white space are ignored.

    Raises:
        PromptError: No bad prompt is left for evaluation or for directions.
    """
    if not keep:
        return sets
    held_out = () if sets.held_out is None else sets.held_out.bad
    everywhere = _bad_prompts(sets)
    wanted = {category_key(name) for name in keep}
    texts = {_text(prompt) for prompt in everywhere if _key(prompt) in wanted}
    protected, bad = _parted(sets.bad, texts)
    spared, scored = _parted(sets.evaluation.bad, texts)
    more_spared, held_out = _parted(held_out, texts)
    for rows, where in ((scored, "for evaluation"), (bad, "for directions")):
        if not rows:
            raise PromptError(
                f"No bad prompt {where} is left: all have categories that keep names "
                f"({', '.join(keep)}).",
                remedy="Name fewer categories in keep, or add bad prompts of other categories.",
            )
    return replace(
        sets,
        bad=bad,
        evaluation=replace(sets.evaluation, bad=scored),
        held_out=None if sets.held_out is None else replace(sets.held_out, bad=held_out),
        protected=[*sets.protected, *protected],
        spared=[*spared, *more_spared],
    )


def remarks_on_spared(sets: PromptSets, keep: Sequence[str], *, searched: bool = True) -> list[str]:
    """What `keep` does not do with these sets, one sentence each.

    Args:
        sets: What `spare` returned.
        searched: Whether the sets are for a search, which protects what it spares.
    """
    told = []
    protected, spared = (
        {_key(prompt) for prompt in rows} for rows in (sets.protected, sets.spared)
    )
    for name in dict.fromkeys(keep):
        key = category_key(name)
        if searched and key not in protected:
            told.append(
                f"No bad prompt for directions has the category {name}, which keep names: it is "
                "left out of the search, but nothing protects it. Add such prompts to bad_prompts."
            )
        if key not in spared:
            told.append(
                f"No evaluation or held-out prompt has the category {name}, which keep names: what "
                "the edit does to it is not measured. Add such prompts to bad_evaluation_prompts."
            )
        told += [
            f"The scorer's own prompts {own} hold the category {name}, which keep names, and stay "
            "in the search. Take them out of that set, or name it apart."
            for own, rows in sets.evaluation.more.items()
            if any(_key(prompt) == key for prompt in rows)
        ]
    return told


def check_kept(sets: PromptSets, keep: Sequence[str]) -> None:
    """Refuse names of categories that no bad prompt of a run has.

    Raises:
        PromptError: There is one; the message names the nearest category.
    """
    known = {_key(prompt): prompt.category or "" for prompt in reversed(_bad_prompts(sets))}
    more = len(known) - _SHOWN_AT_MOST
    listed = ", ".join(sorted(known.values())[:_SHOWN_AT_MOST])
    for name in keep:
        if category_key(name) not in known:
            (nearest,) = difflib.get_close_matches(category_key(name), known, n=1, cutoff=0.0)
            raise PromptError(
                f"keep names the category {name!r}, which no bad prompt has.",
                remedy=f"The nearest one is {known[nearest]!r}; there are {listed}"
                + (f" and {more} more." if more > 0 else "."),
            )


def _bad_prompts(sets: PromptSets) -> list[Prompt]:
    held_out = () if sets.held_out is None else sets.held_out.bad
    return [*sets.bad, *sets.evaluation.bad, *held_out]


def _parted(rows: Sequence[Prompt], texts: set[str]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts with these texts, and the others."""
    named = [prompt for prompt in rows if _text(prompt) in texts]
    return named, [prompt for prompt in rows if _text(prompt) not in texts]


def _text(prompt: Prompt) -> str:
    """What two prompts of one text share, as `shared_prompts` compares them."""
    return " ".join(prompt.user.lower().split())


def _key(prompt: Prompt) -> str:
    return category_key(prompt.category or "")
