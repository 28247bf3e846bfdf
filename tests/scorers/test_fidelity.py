"""Scores beyond the first token: what they measure, and that slower computations agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from torch.nn import functional

from heretic.config import Settings
from heretic.errors import HereticError, ScorerError
from heretic.evaluator import Evaluator
from heretic.evaluator.baseline import BaselineFile
from heretic.evaluator.library import evaluation_prompts
from heretic.model import AbliterationParameters, Model
from heretic.model.teacher_forcing import continuation, reading, reference
from heretic.records import Plan, Score
from heretic.scorers import load_scorers

TOKENS = 5
SCORERS = {
    "kl_divergence": "kl_divergence:KLDivergence",
    "first": "fidelity:ContinuationKL",
    "continuation_kl": "fidelity:ContinuationKL",
    "agreement": "fidelity:GreedyAgreement",
    "perplexity": "fidelity:Perplexity",
    "length": "fidelity:ReplyLength",
    "chrf": "fidelity:ReplySimilarity",
    "bleu": "fidelity:ReplySimilarity",
    "rouge": "fidelity:ReplySimilarity",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("files")
    tiny.folder(path / "model")
    tiny.prompt_files(path)
    texts = path / "texts.txt"
    texts.write_text("Rain fell on the hills all night.\nA\nBread needs time, water and salt.\n")

    def rows(name: str, split: str) -> dict[str, str]:
        return {"dataset": str(path / f"{name}.txt"), "split": split}

    return Settings.restore(
        {
            "model": str(path / "model"),
            "dtypes": ["float32"],
            "response_prefix": "",
            "max_response_length": 6,
            "good_prompts": rows("good", "train[:8]"),
            "bad_prompts": rows("bad", "train[:8]"),
            "good_evaluation_prompts": rows("good", "train[8:]"),
            "bad_evaluation_prompts": rows("bad", "train[8:]"),
            "scorers": [
                {"plugin": f"heretic.scorers.{plugin}", "name": name, "optimization": "none"}
                for name, plugin in SCORERS.items()
            ],
            "scorer": {
                "first": {"tokens": 1},
                "continuation_kl": {"tokens": TOKENS},
                "agreement": {"tokens": TOKENS},
                "perplexity": {"texts": {"dataset": str(texts)}, "max_tokens": 20},
                "bleu": {"metric": "bleu"},
                "rouge": {"metric": "rouge"},
            },
        }
    )


@pytest.fixture(scope="module")
def model(settings: Settings) -> Model:
    return Model(settings)


@pytest.fixture(scope="module")
def evaluator(settings: Settings, model: Model) -> Evaluator:
    good = model.get_residuals_batched(tiny.GOOD_PROMPTS[:8])
    bad = model.get_residuals_batched(tiny.BAD_PROMPTS[:8])
    directions = functional.normalize(bad.mean(dim=0) - good.mean(dim=0), dim=-1)
    return Evaluator(settings, model, directions)


def plan(weight: float) -> Plan:
    kernel = AbliterationParameters(weight, 1.5, weight / 3, 5.0)
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={"attn": kernel, "mlp": kernel},
        row_normalization="full",
    )


def by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def test_the_original_is_not_damaged(evaluator: Evaluator) -> None:
    scores = by_name(evaluator.evaluate([plan(0.0)])[0])
    assert {name: round(score.value, 6) for name, score in scores.items()} == {
        "kl_divergence": 0.0,
        "first": 0.0,
        "continuation_kl": 0.0,
        "agreement": 1.0,
        "perplexity": 0.0,
        "length": 0.0,
        "chrf": 100.0,
        "bleu": 100.0,
        "rouge": 100.0,
    }


def test_every_figure_sees_damage_and_has_values_for_each_prompt(evaluator: Evaluator) -> None:
    scores = by_name(evaluator.evaluate([plan(1.5)])[0])
    assert scores["first"].value == pytest.approx(scores["kl_divergence"].value, rel=1e-4)
    assert scores["continuation_kl"].value > 0.01
    assert scores["agreement"].value < 1
    assert max(map(abs, scores["perplexity"].values)) > 1e-3
    for metric in ("chrf", "bleu", "rouge"):
        assert scores[metric].value < 100
    for name, score in scores.items():
        assert len(score.values) == (3 if name == "perplexity" else len(tiny.GOOD_PROMPTS) - 8)
        assert score.interval is not None


def test_hooked_and_edited_weights_score_alike(evaluator: Evaluator, model: Model) -> None:
    hooked = evaluator.evaluate([plan(1.5)])[0]
    assert evaluator.directions is not None
    model.apply(plan(1.5), evaluator.directions)
    try:
        edited = evaluator.score_current()
    finally:
        model.restore()
    for one, other in zip(hooked, edited, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-6), one.name


def test_divergence_along_a_reply_is_that_of_its_prompts_one_by_one(
    evaluator: Evaluator, model: Model
) -> None:
    prompts = evaluation_prompts(model.settings, ()).good
    original = reference(model, prompts, TOKENS)
    assert evaluator.directions is not None
    with model.edited(plan(1.5), evaluator.directions):
        found = continuation(model, prompts, original)
    for row, (start, reply) in enumerate(
        zip(model.encode_rows(prompts), original.replies, strict=True)
    ):
        for position in range(len(reply) + 1):
            so_far = [start + list(reply[:position])]
            before = model.logits_after(so_far).double().log_softmax(dim=-1)
            with model.edited(plan(1.5), evaluator.directions):
                after = model.logits_after(so_far).double().log_softmax(dim=-1)
            expected = float((before.exp() * (before - after)).sum())
            assert float(found.divergence[row, position]) == pytest.approx(expected, abs=1e-5)
            same = before.argmax() == after.argmax()
            assert bool(found.agreement[row, position]) == bool(same)
        assert found.divergence[row, len(reply) + 1 :].isnan().all()


def test_agreement_is_how_long_greedy_replies_are_the_same(
    evaluator: Evaluator, model: Model
) -> None:
    prompts = evaluation_prompts(model.settings, ()).good
    score = by_name(evaluator.evaluate([plan(1.5)])[0])["agreement"]
    before = model.get_reply_ids_batched(prompts, TOKENS)
    assert evaluator.directions is not None
    with model.edited(plan(1.5), evaluator.directions):
        after = model.get_reply_ids_batched(prompts, TOKENS)
    for share, left, right in zip(score.values, before, after, strict=True):
        width = min(len(left) + 1, TOKENS)
        # the end of a reply counts as one more token
        pair = ([*left, -1][:width], [*right, -1][:width])
        together = next((i for i in range(width) if pair[0][: i + 1] != pair[1][: i + 1]), width)
        assert share == pytest.approx(together / width)


def test_the_rest_of_the_vocabulary_counts_as_one_token(
    evaluator: Evaluator, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = evaluation_prompts(model.settings, ()).good
    whole = reference(model, prompts, TOKENS)
    monkeypatch.setattr("heretic.model.teacher_forcing.KEPT", 20)
    short = reference(model, prompts, TOKENS)
    assert short.tokens.shape[-1] == 20
    assert evaluator.directions is not None
    with model.edited(plan(1.5), evaluator.directions):
        exact = continuation(model, prompts, whole).divergence
        bound = continuation(model, prompts, short).divergence
    there = ~exact.isnan()
    assert (bound[there] <= exact[there] + 1e-5).all()
    assert (bound[there] > 0.3 * exact[there]).all()


def test_nll_is_the_models_own_loss(model: Model) -> None:
    text = "Bread needs time."
    ids = torch.tensor(model.renderer.token_ids([text]))
    with torch.inference_mode():
        loss = model.model(input_ids=ids, labels=ids).loss
    found = reading(model, [text, "x"], 512)
    assert int(found.tokens[0]) == ids.shape[1] - 1
    assert float(found.nll[0] / found.tokens[0]) == pytest.approx(float(loss), rel=1e-5)
    assert int(reading(model, [text], 4).tokens[0]) == 3


def test_a_baseline_is_read_again_as_it_was(
    settings: Settings, model: Model, evaluator: Evaluator, tmp_path: Path
) -> None:
    file = BaselineFile(tmp_path / "baseline.safetensors", "key")
    file.write(evaluator.baseline_outputs)
    again = Evaluator(settings, model, evaluator.directions, baseline_file=file)
    assert again.baseline == evaluator.baseline
    assert again.evaluate([plan(1.5)]) == evaluator.evaluate([plan(1.5)])


def test_longer_looks_than_the_kept_baseline_had_are_computed(
    settings: Settings, model: Model, evaluator: Evaluator, tmp_path: Path
) -> None:
    file = BaselineFile(tmp_path / "baseline.safetensors", "key")
    file.write(evaluator.baseline_outputs)
    longer = settings.replaced(scorer={**settings.scorer, "agreement": {"tokens": TOKENS + 2}})
    again = Evaluator(longer, model, evaluator.directions, baseline_file=file)
    assert again.baseline_outputs.references["good"].tokens.shape[1] == TOKENS + 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("first", {"tokens": 0}, "greater than or equal to 1"), ("bleu", {"metric": "x"}, "chrf")],
)
def test_wrong_options_are_named(
    settings: Settings, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ScorerError, match=said):
        load_scorers(settings.replaced(scorer={**settings.scorer, name: options}))


def test_a_missing_text_set_is_said_before_any_work(settings: Settings) -> None:
    wrong = {**settings.scorer, "perplexity": {"texts": {"dataset": "/nowhere/texts.txt"}}}
    with pytest.raises(HereticError, match="does not exist"):
        evaluation_prompts(settings, load_scorers(settings.replaced(scorer=wrong)))
