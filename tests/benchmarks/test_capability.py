"""The capability set: its items, and that scores are the model's own probabilities."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from benchmarks.search_parts import capability
from benchmarks.search_parts.capability import Item, items
from tests.support import tiny

from heretic.config import Settings
from heretic.model import Model
from heretic.records import MLP, Kernel, Plan

ITEMS = items()
KINDS = sorted({item.kind for item in ITEMS})


class TestItems:
    def test_there_are_a_hundred_questions(self):
        """Published figures are of these."""
        assert len(ITEMS) == 100
        assert all(item.question.endswith(("?", ".", '"')) for item in ITEMS)

    def test_questions_are_asked_once(self):
        assert len({item.question.lower() for item in ITEMS}) == len(ITEMS)

    @pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.question)
    def test_answers_differ_and_none_begins_another(self, item: Item):
        """The beginning of an answer is likelier than the answer, whatever the question."""
        choices = [choice.lower() for choice in item.choices]
        assert len(choices) == 4
        for number, choice in enumerate(choices):
            assert not any(
                other.startswith(choice) for other in choices[:number] + choices[number + 1 :]
            )

    def test_length_does_not_give_the_answer_away(self):
        lengths = [[len(choice) for choice in item.choices] for item in ITEMS]
        assert sum(first < min(others) for first, *others in lengths) < 25
        assert sum(first > max(others) for first, *others in lengths) < 25


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny.folder(tmp_path_factory.mktemp("tiny"))
    return Model(Settings(model=str(folder), dtypes=["float32"], batch_size=48))


class TestScores:
    def test_they_are_the_probabilities_of_single_forward_passes(self, model: Model):
        asked = ITEMS[::20]
        result = capability.capability(model, asked)
        for item, share, right in zip(asked, result.shares, result.right, strict=True):
            found = torch.tensor([alone(model, item, choice) for choice in item.choices])
            assert share == pytest.approx(float(found.softmax(dim=-1)[0]), abs=1e-5)
            assert right is bool(found.argmax() == 0)
        assert result.accuracy == sum(result.right) / len(asked)
        assert result.certainty == pytest.approx(sum(result.shares) / len(asked))

    def test_which_answer_is_right_makes_the_difference(self, model: Model):
        """The four shares of the answers to one question make 1, and one of them is right."""
        item = ITEMS[0]
        turned = [
            Item(item.kind, item.question, first, tuple(c for c in item.choices if c != first))
            for first in item.choices
        ]
        result = capability.capability(model, turned)
        assert sum(result.shares) == pytest.approx(1)
        assert sum(result.right) == 1

    def test_edits_in_force_count(self, model: Model):
        plan = Plan.create(
            direction_scope="mean",
            direction_index=None,
            kernels={MLP: Kernel(1.0, 1.0, 1.0, 3.0)},
            row_normalization="none",
        )
        rows = torch.randn(
            model.n_layers + 1, model.hidden_size, generator=torch.Generator().manual_seed(0)
        )
        directions = torch.nn.functional.normalize(rows, dim=-1)
        asked = ITEMS[:8]
        before = capability.capability(model, asked)
        with model.edited(plan, directions):
            hooked = capability.capability(model, asked)
        model.apply(plan, directions)
        applied = capability.capability(model, asked)
        model.restore()
        assert capability.capability(model, asked) == before
        assert hooked.shares != before.shares
        assert hooked.shares == pytest.approx(applied.shares, abs=1e-5)

    def test_a_folder_is_scored_from_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        capability.main([str(tiny.folder(tmp_path / "tiny"))])
        printed = re.findall(r'"(\w+)": ([\d.]+)', capsys.readouterr().out)
        found = {name: float(value) for name, value in printed}
        assert list(found) == ["accuracy", "certainty", *KINDS]
        assert found["accuracy"] * 100 == sum(found[kind] for kind in KINDS)


def alone(model: Model, item: Item, choice: str) -> float:
    """Log-probability of an answer, from one row without padding."""
    prompt = model.prompt_text(f"{item.question} {capability.TASK}")
    ids = model.tokenizer(prompt, add_special_tokens=False).input_ids
    whole = model.tokenizer(prompt + choice, add_special_tokens=False).input_ids
    assert whole[: len(ids)] == ids
    logprobs = model.model(torch.tensor([whole])).logits[0].detach().log_softmax(dim=-1)
    return sum(float(logprobs[n - 1, whole[n]]) for n in range(len(ids), len(whole)))
