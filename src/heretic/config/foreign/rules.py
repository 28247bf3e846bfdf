"""What becomes of each key of `heretic-llm`'s files: one table of plain data.

docs/migrate.md is written from it. A key of the same name is `same` only where value and meaning
are the same too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from heretic.config.foreign import convert
from heretic.config.foreign.convert import Converter
from heretic.config.foreign.data_sets import data_sets
from heretic.config.foreign.plugins import modifiers, scorers

NAME = "heretic-llm"
"""The other project, by the name of its package."""

Handling = Literal["same", "renamed", "converted", "needless", "left", "consent"]
"""`needless`: this tool does so by itself. `left`: there is no counterpart. `consent`: it would let
code of others run or send data away, which no file of another tool may say here."""

Kind = Literal["settings", "judge", "reproduction"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a key.

    Attributes:
        key: The key with the tables above it, joined by dots.
        of: Releases whose files have it.
        to: Our setting, joined by dots; empty if there is none.
        convert: Makes our value of theirs.
        why: What to know; for a key that is left out, the reason and what to use instead.
        note: What to know too, but is told of a file only if it is so there; for the table.
    """

    key: str
    of: str
    handling: Handling
    to: str = ""
    convert: Converter = convert.same
    why: str = ""
    note: str = ""


_IN_BOTH = (
    "model",
    "model_commit",
    "evaluate_model",
    "dtypes",
    "device_map",
    "max_memory",
    "batch_size",
    "max_batch_size",
    "max_response_length",
    "chain_of_thought_skips",
    "system_prompt",
    "n_trials",
    "n_startup_trials",
    "seed",
    "study_checkpoint_dir",
    "save_directory",
)
_IN_FIRST = (
    "print_residual_geometry",
    "plot_residuals",
    "residual_plot_path",
    "residual_plot_title",
    "residual_plot_style",
    "kl_divergence_scale",
    "orthogonalize_direction",
    "winsorization_quantile",
)

_NO_RANK = (
    "an edit is applied as it is, and adapters hold it exactly (a DoRA where row norms are kept); "
    "`max_rank` is something else, the number of directions"
)
_NO_SOM = "directions are not found by a map; `max_rank` above 1 adds further directions"
_NO_ARA = (
    'arbitrary-rank ablation has no counterpart; the default search (`search = "auto"`) fits '
    "vectors by gradients as well"
)
_NO_DEBUG = "`heretic --help-all` lists what can be printed; errors keep their tracebacks"
_NO_REPLIES = "replies are not printed; `heretic chat RUN` talks to the model of any trial"
_IMPLIED = (
    "in lower case, with plain apostrophes and without asterisks; a file that names no scorers "
    "gets `keyword` and `kl_divergence`, since it counts replies by these texts"
)
_ROWS = ("none", "pre", "full")


def _prompts(key: str, of: str, to: str) -> Rule:
    handling: Handling = "converted" if key == to else "renamed"
    return Rule(key, of, handling, to, data_sets, note="its keys are in the table below")


SETTINGS: tuple[Rule, ...] = (
    *(Rule(key, "1.x, 2.x", "same", key) for key in _IN_BOTH),
    *(Rule(key, "1.x", "same", key) for key in _IN_FIRST),
    Rule(
        "quantization", "1.x, 2.x", "same", "quantization",
        convert.one_of("none", "bnb_4bit", "bnb_8bit"),
    ),
    Rule(
        "row_normalization", "1.x", "same", "row_normalization", convert.one_of(*_ROWS),
    ),
    Rule(
        "export_strategy", "1.x, 2.x", "same", "export_strategy",
        convert.one_of("merge", "adapter"),
    ),
    Rule(
        "model_action", "1.x, 2.x", "same", "model_action",
        convert.one_of("save", "upload", "chat", "benchmark", "none"),
    ),
    Rule(
        "max_shard_size", "1.x, 2.x", "converted", "max_shard_size", convert.shard_size,
        note="a number is bytes; it holds where weights are saved from memory, and copies of the "
        "base's files are split as those are",
    ),
    Rule(
        "trial_index", "1.x, 2.x", "converted", "trial_index", convert.first_row,
        "row 0 here is the one with the fewest refusals; other rows are left out",
    ),
    Rule(
        "checkpoint_action", "1.x, 2.x", "converted", "checkpoint_action", convert.if_run_exists,
        note="`restart` is the same; `continue` is what happens if nothing is set. Runs of the "
        "other tool cannot be continued",
    ),
    Rule(
        "response_prefix", "1.x, 2.x", "converted", "response_prefix", convert.response_prefix,
        note="unset (`auto` here), a prefix is looked for; empty text means none",
    ),
    Rule(
        "chain_of_thought_blocks", "2.x", "renamed", "chain_of_thought_skips", convert.skips,
        "pairs of the beginning and the end of a reasoning block; the closed block is both",
    ),
    Rule("print_refusal_geometry", "1.x", "renamed", "print_residual_geometry"),
    Rule("refusal_markers", "1.x", "converted", "refusal_markers", convert.markers, note=_IMPLIED),
    _prompts("good_prompts", "1.x", "good_prompts"),
    _prompts("bad_prompts", "1.x", "bad_prompts"),
    _prompts("good_evaluation_prompts", "1.x", "good_evaluation_prompts"),
    _prompts("bad_evaluation_prompts", "1.x", "bad_evaluation_prompts"),
    Rule(
        "offload_outputs_to_cpu", "1.x, 2.x", "needless",
        convert=convert.nothing,
        why="what is kept of logits and residuals is in the machine's memory anyway",
    ),
    Rule(
        "batch_size_test_prompts", "2.x", "needless", convert=convert.nothing,
        why="the batch size comes from the memory that is free, without test prompts",
    ),
    Rule(
        "response_prefix_test_prompts", "2.x", "needless", convert=convert.nothing,
        why="the prefix is looked for on the run's own prompts",
    ),
    Rule("print_responses", "1.x", "left", why=_NO_REPLIES),
    Rule("print_debug_information", "1.x, 2.x", "left", why=_NO_DEBUG),
    Rule(
        "kl_divergence_target", "1.x", "left",
        why="edits that do nothing are one end of the front, which the search keeps; "
        "`max_refusals` bounds the other objective",
    ),
    Rule("full_normalization_lora_rank", "1.x", "left", why=_NO_RANK),
    *(
        Rule(key, "1.x", "left", why=_NO_SOM)
        for key in (
            "multidirectional_som", "som_x", "som_y", "som_iterations", "som_lr", "som_sigma",
            "som_k",
        )
    ),
    Rule(
        "trust_remote_code", "1.x, 2.x", "consent",
        why="it runs code that comes with the model: say --trust-remote-code yourself if you "
        "trust it",
    ),
    Rule(
        "scorers", "2.x", "converted", "scorers", scorers,
        note="`KeywordRate` is `keyword`, `KLDivergence` is `kl_divergence`, `RefusalDetector` (a "
        "classifier) becomes `refusal` (rules); others are left out, and plugins of your own have "
        "to be named again",
    ),
    Rule(
        "scorer.KeywordRate.keyword_markers", "2.x", "renamed", "refusal_markers", convert.markers,
        note=_IMPLIED,
    ),
    Rule(
        "scorer.KeywordRate.score_name", "2.x", "needless", convert=convert.nothing,
        why="it becomes the `name` of the scorer, in lower case and without spaces",
    ),
    Rule("scorer.KeywordRate.print_responses", "2.x", "left", why=_NO_REPLIES),
    _prompts("scorer.KeywordRate.prompts", "2.x", "bad_evaluation_prompts"),
    _prompts("scorer.KLDivergence.prompts", "2.x", "good_evaluation_prompts"),
    _prompts("scorer.RefusalDetector.prompts", "2.x", "bad_evaluation_prompts"),
    *(
        Rule(
            f"scorer.RefusalDetector.{key}", "2.x", "left",
            why="the classifier is not taken over; `classifier_judge` runs one of your choice "
            "(docs/judges.md)",
        )
        for key in ("model", "model_commit")
    ),
    Rule("scorer.RefusalDetector.print_responses", "2.x", "left", why=_NO_REPLIES),
    *(
        Rule(
            f"scorer.BenchmarkScore.{key}", "2.x", "left",
            why="benchmarks do not judge trials: `benchmarks` runs them on the chosen one, and the "
            "scorer `capability` reads multiple-choice items in every trial",
        )
        for key in ("score_name", "task", "metric")
    ),
    Rule(
        "modifiers", "2.x", "needless", convert=modifiers,
        why="`Abliteration` is what this tool does; of `ARA`, prompts and row norms are taken",
    ),
    *(
        _prompts(f"modifier.{name}.{kind}_prompts", "2.x", f"{kind}_prompts")
        for name in ("Abliteration", "ARA")
        for kind in ("good", "bad")
    ),
    *(
        Rule(f"modifier.Abliteration.{key}", "2.x", "renamed", key)
        for key in ("orthogonalize_direction", "winsorization_quantile")
    ),
    Rule(
        "modifier.Abliteration.row_normalization", "2.x", "renamed", "row_normalization",
        convert.one_of(*_ROWS),
    ),
    Rule("modifier.Abliteration.full_normalization_lora_rank", "2.x", "left", why=_NO_RANK),
    Rule(
        "modifier.ARA.preserve_row_magnitudes", "2.x", "converted", "row_normalization",
        convert.row_normalization, "true is `full`, false is `none`",
    ),
    Rule("modifier.ARA.lora_rank", "2.x", "left", why=_NO_RANK),
    *(
        Rule(f"modifier.ARA.{key}", "2.x", "left", why=_NO_ARA)
        for key in (
            "n_optimization_steps", "learning_rate", "max_iter", "history_size", "print_loss",
        )
    ),
)  # fmt: skip
"""Keys of settings files."""

JUDGE_TABLE = "scorer.refusals"
"""Where the options of a judge stand."""

JUDGE: tuple[Rule, ...] = (
    Rule(
        "api_base", "judge", "consent",
        why="it says where replies are sent: say --scorer.refusals.endpoint URL yourself, the "
        "address without /chat/completions",
    ),
    Rule(
        "api_key", "judge", "consent",
        why="a key stands in no file here: put it into an environment variable, and name that by "
        "--scorer.refusals.api_key_env",
    ),
    Rule("models", "judge", "converted", f"{JUDGE_TABLE}.model", convert.first_model,
         "the first one, as a scorer has one judge"),
    Rule("concurrency", "judge", "renamed", f"{JUDGE_TABLE}.concurrency"),
    Rule("timeout", "judge", "renamed", f"{JUDGE_TABLE}.timeout"),
    Rule("max_retries", "judge", "renamed", f"{JUDGE_TABLE}.max_retries"),
    Rule("batch_size", "judge", "left", why="a request holds one reply"),
    Rule("pricing", "judge", "converted", JUDGE_TABLE, convert.prices,
         "the prices of the first of `models`, as `price_in` and `price_out`"),
)  # fmt: skip
"""Keys of the file of its judge."""

JUDGE_SCORERS = (
    {"plugin": "llm_judge", "optimization": "minimize", "name": "refusals"},
    {"plugin": "kl_divergence", "optimization": "minimize", "name": "kl_divergence"},
)
"""The scorers that the options of a judge belong to."""

RECORDED = ("model", "model_commit", "seed")
"""Settings that a reproduction file has beside its `settings`."""


def rules_of(kind: Kind) -> Mapping[str, Rule]:
    """The rules for a kind of file, by key."""
    return {rule.key: rule for rule in (JUDGE if kind == "judge" else SETTINGS)}
