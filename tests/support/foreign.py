"""Key names of the settings files of heretic-llm, another project, and files made of such keys.

Only names, as the files had them: `FILES` says which file, and which release or commit it is of.
"""

from __future__ import annotations

from typing import Any

from heretic.config.foreign.data_sets import SAME_KEYS
from heretic.config.nested import put

SET_KEYS = {*SAME_KEYS, "prefix", "suffix"}
"""Keys of the table of a data set."""

_DATA_SET = ("dataset", "split", "column")
_PLOTTED = (*_DATA_SET, "residual_plot_label", "residual_plot_color")
_FIRST = ("good_prompts", "bad_prompts")
_SCORED = ("good_evaluation_prompts", "bad_evaluation_prompts")


def _sets(names: tuple[str, ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}.{key}" for name in names for key in keys)


_MACHINE = (
    "dtypes", "quantization", "device_map", "max_memory", "offload_outputs_to_cpu", "batch_size",
    "max_batch_size", "max_response_length", "chain_of_thought_skips",
)  # fmt: skip
_PLOTS = (
    "print_residual_geometry", "plot_residuals", "residual_plot_path", "residual_plot_title",
    "residual_plot_style",
)  # fmt: skip
_SEARCH = ("n_trials", "n_startup_trials", "study_checkpoint_dir", "max_shard_size")
_EDIT = (
    "orthogonalize_direction", "row_normalization", "full_normalization_lora_rank",
    "winsorization_quantile",
)  # fmt: skip
_KEYWORDS = ("score_name", "print_responses", "keyword_markers")
_ARA = (
    "preserve_row_magnitudes", "lora_rank", "n_optimization_steps", "learning_rate", "max_iter",
    "history_size", "print_loss",
)  # fmt: skip
_PREFIXED = (*_DATA_SET, "prefix")
_OF_SCORERS = ("scorer.KeywordRate.prompts", "scorer.KLDivergence.prompts")
_OF_ARA = ("modifier.ARA.good_prompts", "modifier.ARA.bad_prompts")
_RUN = (
    "model", "model_commit", "seed", "print_debug_information", "batch_size",
    "max_response_length", "n_trials", "n_startup_trials", "export_strategy", "checkpoint_action",
    "trial_index", "model_action", "save_directory",
)  # fmt: skip

FILES: dict[str, tuple[str, ...]] = {
    "config.default.toml, documented for 1.4": (
        *_MACHINE, "print_responses", *_PLOTS, "kl_divergence_scale", "kl_divergence_target",
        *_EDIT, *_SEARCH, "refusal_markers", "system_prompt", *_sets(_FIRST, _PLOTTED),
        *_sets(_SCORED, _DATA_SET),
    ),
    "config.default.toml, before 1.1 (a4a97c73)": (
        "dtypes", "device_map", "batch_size", "max_batch_size", "max_response_length",
        "print_refusal_geometry", "kl_divergence_scale", "n_trials", "n_startup_trials",
        "refusal_markers", "system_prompt", *_sets((*_FIRST, *_SCORED), _DATA_SET),
    ),
    "config.default.toml, with maps (001006dc)": (
        "multidirectional_som", "som_x", "som_y", "som_iterations", "som_lr", "som_sigma", "som_k",
    ),
    "config.noslop.toml, 1.x (632b1da6)": (
        "max_response_length", "residual_plot_title", "refusal_markers", "system_prompt",
        *_sets(_FIRST, (*_PLOTTED, "prefix")), *_sets(_SCORED, _PREFIXED),
    ),
    "config.nohumor.toml, 1.x (069540c1)": (
        "max_response_length", "residual_plot_title", "refusal_markers", *_sets(_FIRST, _PLOTTED),
        *_sets(_SCORED, _DATA_SET),
    ),
    "config.nosyco.toml, 1.x (984b3800)": (
        "max_response_length", "residual_plot_title", "refusal_markers", *_sets(_FIRST, _PLOTTED),
        "bad_prompts.system_prompt", *_sets(_SCORED, _DATA_SET),
        "bad_evaluation_prompts.system_prompt",
    ),
    "config.default.toml, 2.x (598f5f4b)": (
        *_MACHINE, "print_debug_information", "scorers", "modifiers", *_SEARCH, "system_prompt",
        *(f"scorer.KeywordRate.{key}" for key in _KEYWORDS), *_sets(_OF_SCORERS, _DATA_SET),
        *(f"modifier.Abliteration.{key}" for key in _EDIT),
        *_sets(("modifier.Abliteration.good_prompts", "modifier.Abliteration.bad_prompts"),
               _DATA_SET),
    ),
    "config.default.toml, 2.x (a copy of master, 66612f86)": (
        *_MACHINE, "print_debug_information", "scorers", "modifiers", *_SEARCH, "system_prompt",
        *_sets(("batch_size_test_prompts", "response_prefix_test_prompts"), _DATA_SET),
        *(f"scorer.KeywordRate.{key}" for key in _KEYWORDS), *_sets(_OF_SCORERS, _DATA_SET),
        *(f"scorer.BenchmarkScore.{key}" for key in ("score_name", "task", "metric")),
        *(f"modifier.ARA.{key}" for key in _ARA), *_sets(_OF_ARA, (*_DATA_SET, "config")),
    ),
    "config.noslop.toml, 2.x (37f42997)": (
        "max_response_length", "system_prompt", "scorer.KeywordRate.score_name",
        "scorer.KeywordRate.keyword_markers", *_sets(_OF_SCORERS, _PREFIXED),
        *_sets(_OF_ARA, _PREFIXED),
    ),
    "config.nohumor.toml, 2.x (66612f86)": (
        "max_response_length", "scorer.KeywordRate.score_name",
        "scorer.KeywordRate.keyword_markers", *_sets(_OF_SCORERS, _DATA_SET),
        *_sets(_OF_ARA, _DATA_SET),
    ),
    "config.classifier.toml, 2.x (14f5fe41)": ("scorers",),
    "config.piqa.toml, 2.x (37f42997)": ("scorers",),
    "its tests' config.toml, 2.x (0877a0ce, d1e09deb)": (
        *_RUN, "scorers", *_sets(("response_prefix_test_prompts",), (*_DATA_SET, "commit")),
        "scorer.RefusalDetector.model", "scorer.RefusalDetector.model_commit",
        "scorer.RefusalDetector.print_responses",
        *_sets((*_OF_SCORERS, "scorer.RefusalDetector.prompts"), (*_DATA_SET, "commit")),
        "scorer.KeywordRate.print_responses", "modifier.ARA.preserve_row_magnitudes",
        "modifier.ARA.lora_rank", *_sets(_OF_ARA, (*_DATA_SET, "commit")),
    ),
    "judge.default.toml, 2.x (2404d458)": (
        "api_base", "api_key", "models", "batch_size", "concurrency", "timeout", "max_retries",
        "pricing",
    ),
}  # fmt: skip

_A, _B = {"dataset": "org/a", "split": "train[:4]"}, {"dataset": "org/b"}

VALUES: dict[str, Any] = {
    "model": "org/model", "model_commit": "abc", "evaluate_model": "org/edited",
    "dtypes": ["auto", "float32"], "quantization": "bnb_4bit", "device_map": "cpu",
    "max_memory": {"0": "20GB"}, "offload_outputs_to_cpu": False, "batch_size": 4,
    "max_batch_size": 8, "max_response_length": 30, "system_prompt": "Be brief.",
    "chain_of_thought_skips": [["<a>", "<a></a>"]], "chain_of_thought_blocks": [["<a>", "</a>"]],
    "n_trials": 7, "n_startup_trials": 3, "seed": 5, "study_checkpoint_dir": "runs",
    "save_directory": "out", "print_residual_geometry": True, "print_refusal_geometry": True,
    "plot_residuals": True, "residual_plot_path": "pictures", "residual_plot_title": "Residuals",
    "residual_plot_style": "classic", "kl_divergence_scale": 0.5, "orthogonalize_direction": False,
    "winsorization_quantile": 0.9, "row_normalization": "pre", "export_strategy": "adapter",
    "model_action": "save", "max_shard_size": 2_000_000_000, "trial_index": 0,
    "checkpoint_action": "restart", "response_prefix": "Well", "trust_remote_code": True,
    "refusal_markers": ["Sorry", "I can’t"], "keyword_markers": ["Eldoria", "velvet"],
    "score_name": "Responses with slop", "prompts": _A, "good_prompts": [_A, _B],
    "bad_prompts": _B, "good_evaluation_prompts": _A, "bad_evaluation_prompts": _B,
    "batch_size_test_prompts": _A, "response_prefix_test_prompts": [_A, _B],
    "print_responses": True, "print_debug_information": True, "kl_divergence_target": 0.01,
    "preserve_row_magnitudes": False, "api_base": "http://localhost:8317/v1/chat/completions",
    "api_key": "sk-0123456789abcdef", "models": ["first", "second"], "concurrency": 6,
    "timeout": 90, "max_retries": 3, "pricing": {"first": [0.15, 0.6]},
    "scorers": [
        {"plugin": "heretic.scorers.keyword_rate.KeywordRate", "optimization": "minimize"},
        {"plugin": "heretic.scorers.kl_divergence.KLDivergence", "optimization": "minimize"},
    ],
    "modifiers": [{"plugin": "heretic.modifiers.ara.ARA"}],
}  # fmt: skip
"""A value for the last part of a key; keys that are always left out may lack one."""


def document(*keys: str) -> dict[str, Any]:
    """A file with these keys, and a value for each."""
    tables: dict[str, Any] = {}
    for key in keys:
        place = tuple(key.split("."))
        if place[-1] in SET_KEYS and len(place) > 1:  # a key of a data set
            place = place[:-1]
        put(tables, place, VALUES.get(place[-1], 3))
    return tables
