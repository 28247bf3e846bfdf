"""The fit: its gradient is right, rounds go on where they stopped, what was seen is pushed away."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from torch import Tensor

from heretic.errors import StudyError
from heretic.model import Model, teacher_forcing
from heretic.model.teacher_forcing import kept_divergence
from heretic.prompts import Prompt
from heretic.records import Kernel, Plan
from heretic.search import activations
from heretic.search.fitting.fit import Fitting
from heretic.search.fitting.objective import Objective, Row
from heretic.search.fitting.progress import FitOptions, Progress, from_content, to_content
from heretic.search.fitting.texts import Pushed, kept_texts, pushed_text
from heretic.search.path import path_plans

GOOD = [Prompt(text) for text in tiny.GOOD_PROMPTS]
BAD = [Prompt(text) for text in tiny.BAD_PROMPTS]
OPTIONS = FitOptions(
    trade_offs=(0.5, 2.0, 2.0),
    steps=3,
    good=4,
    pushed=4,
    kept_tokens=4,
    look_tokens=6,
    rate=0.3,
    lowest=0.0,
    gone=0.0,
    aim=-60.0,  # replies of a random model are unlikely from the beginning
)


def odd(prompt: str, reply: str) -> int | None:
    """Half of the prompts get replies that show something, from the second letter on."""
    return 1 if prompt == "" or len(prompt) % 2 else None


def fitting(
    model: Model, directions: Tensor, progress: Progress | None = None, **changes: object
) -> Fitting:
    options = replace(OPTIONS, **changes)  # type: ignore[arg-type]
    return Fitting(model, GOOD, BAD, directions, odd, seed=3, options=options, progress=progress)


def objective(model: Model) -> Objective:
    return Objective(model, model.writers, model.get_abliterable_components(), aim=0.0)


def some_rows(of: Objective, model: Model) -> list[Row]:
    kept = kept_texts(model, GOOD[:5], 4)
    prompts = model.encode_rows(BAD[:3])
    pushed = [Pushed((*ids, 7, 8, 9), (8, 9, 5)) for ids in prompts]
    return of.rows(kept, [], pushed, 0.7, random.Random(1))


def some_vectors(model: Model, rank: int = 2) -> tuple[Tensor, Tensor]:
    shape = (len(model.get_abliterable_components()), model.n_layers, rank, model.hidden_size)
    generator = torch.Generator().manual_seed(2)
    write, read = (torch.randn(shape, generator=generator) / 6 for _ in range(2))
    return write, read


class TestObjective:
    def test_unedited_there_is_no_damage(self, model: Model) -> None:
        write, read = some_vectors(model)
        found = objective(model).sum(
            torch.zeros_like(write), read, some_rows(objective(model), model)
        )
        assert found.damage == pytest.approx(0.0, abs=1e-5)
        assert found.push > 0

    def test_its_gradients_are_its_slopes(self, model: Model) -> None:
        of, vectors = objective(model), some_vectors(model)
        rows = some_rows(of, model)
        found = of.sum(*vectors, rows)
        generator = torch.Generator().manual_seed(8)
        for place in (0, 1):
            along = torch.randn(vectors[place].shape, generator=generator)
            ends = []
            for step in (-1e-3, 1e-3):
                moved = [part + step * along * (n == place) for n, part in enumerate(vectors)]
                end = of.sum(moved[0], moved[1], rows)
                ends.append(end.damage + end.push)
            slope = (ends[1] - ends[0]) / 2e-3
            assert float((found.gradients[place] * along).sum()) == pytest.approx(slope, rel=0.02)

    @pytest.mark.parametrize("lean", [False, True])
    def test_fewer_rows_at_once_change_nothing(
        self, model: Model, lean: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of, vectors = objective(model), some_vectors(model)
        rows = some_rows(of, model)
        whole = of.sum(*vectors, rows)
        if lean:
            monkeypatch.setattr(activations, "MEMORY_SHARE", 0.0)
        of.rows_at_once = 3
        parts = of.sum(*vectors, rows)
        assert parts.damage == pytest.approx(whole.damage, rel=1e-4)
        assert parts.push == pytest.approx(whole.push, rel=1e-4)
        for one, other in zip(whole.gradients, parts.gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)

    def test_the_push_is_the_joint_probability_of_its_words(self, model: Model) -> None:
        of = objective(model)
        [prompt] = model.encode_rows(BAD[:1])
        text = Pushed((*prompt, 7, 8, 9), (8, 9, 5))
        write, read = some_vectors(model)
        found = of.sum(
            torch.zeros_like(write), read, of.rows([], [], [text], 1.0, random.Random(1))
        )
        ids = torch.tensor([[*prompt, 7, 8, 9]])
        with torch.no_grad():
            logprobs = model.model(ids).logits[0].log_softmax(-1)
        at = len(prompt)
        joint = sum(float(logprobs[at + i, token]) for i, token in enumerate((8, 9, 5)))
        wanted = torch.nn.functional.softplus(torch.tensor(joint))
        assert found.push == pytest.approx(float(wanted), rel=1e-4)


def test_the_divergence_of_kept_tokens_counts_the_rest_as_one() -> None:
    before, after = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0.25, 0.25]]).log()
    wanted = (
        torch.tensor([0.5, 0.3, 0.2])
        * (torch.tensor([0.5, 0.3, 0.2]) / torch.tensor([0.25, 0.25, 0.5])).log()
    )
    torch.testing.assert_close(kept_divergence(before, after), wanted.sum()[None])


class TestPushedText:
    @pytest.mark.parametrize("at", range(12))
    def test_it_begins_with_the_token_that_holds_the_place(self, model: Model, at: int) -> None:
        reply = "one two three four"
        ids = model.tokenizer(reply, add_special_tokens=False).input_ids
        found = pushed_text(model, [1, 2], reply, at, 2)
        assert found is not None
        start = found.first - 1
        assert found.ids[:2] == (1, 2)
        assert list(found.targets) == ids[start : start + 2]
        assert len(model.decode(ids[:start])) <= at < len(model.decode(ids[: start + 1]))

    def test_behind_the_end_there_is_nothing(self, model: Model) -> None:
        assert pushed_text(model, [1], "one", 99, 2) is None


class TestRounds:
    def test_each_round_is_a_point_and_begins_with_the_ablation(
        self, model: Model, directions: Tensor
    ) -> None:
        fit = fitting(model, directions, stuck=9.0)
        points = [len(progress.points) for progress in fit.rounds()]
        assert points == [1, 2, 3]
        found = fit.progress.fit(fit.components)
        assert found.points == 3
        cosines = torch.cosine_similarity(found.read[0, :, :, 0], directions[1:], dim=-1)
        assert cosines.min() > 0.5
        assert not torch.equal(found.write[0], found.write[1])

    def test_what_the_last_look_found_is_pushed_first(
        self, model: Model, directions: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit, steps, rows_of = fitting(model, directions, newest=0.5, pushed=4), [], Objective.rows

        def rows(self: Objective, kept: Any, wanted: Any, pushed: Any, *rest: Any) -> list[Row]:
            steps.append(pushed)
            return rows_of(self, kept, wanted, pushed, *rest)

        monkeypatch.setattr(Objective, "rows", rows)
        fit.progress.found = 2
        newest = set(fit.progress.pushed[-2:])
        next(fit.rounds())
        assert len(steps) == OPTIONS.steps
        assert all(newest <= set(pushed) and len(pushed) == 4 for pushed in steps)

    def test_what_was_shown_becomes_less_likely(self, model: Model, directions: Tensor) -> None:
        fit = fitting(model, directions)
        seen = list(fit.progress.pushed)
        assert seen
        of = Objective(model, model.writers, fit.components, OPTIONS.aim)
        rows = of.rows([], [], seen, 1.0, random.Random(1))
        *_, last = fit.rounds()
        write, read = last.points[-1]
        assert of.sum(write, read, rows).push < 0.8 * of.sum(0 * write, read, rows).push

    def test_it_goes_on_where_it_stopped(self, model: Model, directions: Tensor) -> None:
        whole = fitting(model, directions)
        *_, last = whole.rounds()
        begun = fitting(model, directions)
        content = to_content(next(begun.rounds()), OPTIONS)
        kept = from_content(content, OPTIONS)
        assert kept is not None
        *_, resumed = fitting(model, directions, kept).rounds()
        assert resumed.shown == last.shown
        assert resumed.pushed == last.pushed
        for one, other in zip(resumed.points, last.points, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])

    def test_of_another_method_it_begins_anew(self, model: Model, directions: Tensor) -> None:
        content = to_content(next(fitting(model, directions).rounds()), OPTIONS)
        assert from_content(content, replace(OPTIONS, rate=0.1)) is None

    def test_it_ends_when_hardly_anything_is_shown(self, model: Model, directions: Tensor) -> None:
        """After a round at the earliest, since without a point there is no path."""
        fit = fitting(model, directions, gone=1.01)
        assert len(list(fit.rounds())) == 1

    def test_the_first_layers_are_left_alone(self, model: Model, directions: Tensor) -> None:
        fit = fitting(model, directions, lowest=0.5)
        next(fit.rounds())
        write, read = fit.progress.points[0]
        lowest = -(-model.n_layers // 2)
        assert not write[:, :lowest].any()
        assert not read[:, :lowest].any()
        assert write[:, lowest:].any(dim=-1).all()

    def test_no_gradient_is_left_on_the_model(self, model: Model, directions: Tensor) -> None:
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        next(fitting(model, directions).rounds())
        assert all(parameter.grad is None for parameter in model.model.parameters())
        after = model.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def ablation(model: Model) -> Plan:
    kernels = {name: Kernel(1.5, 1.0, 1.5, 9.0) for name in model.get_abliterable_components()}
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels=kernels,
        row_normalization="none",
    )


def test_where_pushing_is_in_vain_a_teacher_is_asked_once(model: Model, directions: Tensor) -> None:
    """`odd` decides by the prompt, so no edit changes how many replies show it."""
    asked: list[int] = []

    def taught(progress: Progress | None = None) -> Fitting:
        def teacher() -> Plan:
            asked.append(1)
            return ablation(model)

        options = replace(OPTIONS, tried=1)
        own = {"seed": 3, "teacher": teacher, "options": options, "progress": progress}
        return Fitting(model, GOOD, BAD, directions, odd, **own)  # type: ignore[arg-type]

    fit = taught()
    rounds = fit.rounds()
    first = next(rounds)
    alone, content = first.points[0], to_content(first, fit._options)
    points = [len(progress.points) for progress in rounds]
    assert points == [0, 1, 2, 3]  # it began again
    assert torch.equal(fit.progress.alone[0][0], alone[0])
    assert asked == [1]
    assert not torch.equal(fit.progress.points[0][0], alone[0])
    kept = from_content(content, fit._options)
    assert kept is not None
    *_, resumed = taught(kept).rounds()  # killed before it asked
    assert asked == [1, 1]
    assert torch.equal(resumed.points[-1][0], fit.progress.points[-1][0])
    again = from_content(to_content(resumed, fit._options), fit._options)
    assert again is not None
    assert list(taught(again).rounds()) == []
    assert asked == [1, 1]


def test_where_pushing_helps_no_teacher_is_asked(model: Model, directions: Tensor) -> None:
    def never() -> Plan:
        raise AssertionError("nobody needs it")

    shown = iter([*[0] * len(BAD), *[None] * 3 * len(BAD)])
    options = replace(OPTIONS, look_tokens=3)
    fit = Fitting(
        model,
        GOOD,
        BAD,
        directions,
        lambda prompt, reply: None if prompt == "" else next(shown),
        seed=3,
        teacher=never,
        options=options,
    )
    assert len(list(fit.rounds())) == 3
    assert fit.progress.teacher is None


def test_a_teachers_replies_are_what_is_written_instead(model: Model, directions: Tensor) -> None:
    """Where nothing is pushed away, the fit comes nearer to the ablation on bad prompts."""
    teacher = ablation(model)
    shown = {prompt.user for prompt in BAD[::2]}

    def at(prompt: str, reply: str) -> int | None:
        return 0 if prompt in shown else None

    options = replace(
        OPTIONS,
        trade_offs=(50.0,) * 2,
        steps=15,
        rate=0.05,
        look_tokens=3,
        aim=50.0,
        tried=0,
    )
    own = {"seed": 3, "teacher": lambda: teacher, "options": options}
    fit = Fitting(model, GOOD, BAD, directions, at, **own)  # type: ignore[arg-type]
    prompts = [prompt for prompt in BAD if prompt.user not in shown]
    with model.edited(teacher, directions):
        wanted = teacher_forcing.reference(model, prompts, 4)
    before = teacher_forcing.continuation(model, prompts, wanted).divergence.nanmean()
    *_, last = fit.rounds()
    assert last.teacher == teacher
    model.add_fits([last.fit(fit.components)])
    plan = path_plans(last.fit(fit.components))[-1]
    with model.edited(plan, directions):
        after = teacher_forcing.continuation(model, prompts, wanted).divergence.nanmean()
    assert after < 0.7 * before


def test_replies_that_show_nothing_give_nothing_to_fit(model: Model, directions: Tensor) -> None:
    with pytest.raises(StudyError, match="No reply to a bad prompt"):
        Fitting(
            model,
            GOOD,
            [Prompt("What is the sum of one and one?")],
            directions,
            lambda prompt, reply: None,
            seed=1,
            options=replace(OPTIONS, look_tokens=1),
        )


def test_without_directions_there_is_nothing_to_begin_with(model: Model) -> None:
    nothing = torch.zeros(model.n_layers + 1, model.hidden_size)
    with pytest.raises(StudyError, match="has a direction"):
        fitting(model, nothing)


def test_files_are_small_and_hold_no_text(model: Model, directions: Tensor, tmp_path: Path) -> None:
    content = to_content(next(fitting(model, directions).rounds()), OPTIONS)
    assert not any(prompt.user.encode() in content for prompt in BAD)
