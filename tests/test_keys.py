"""Names on disk and in JSON output: programs read them, so that none may be renamed or go."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from heretic.main import run

EARLIER = Path(__file__).parent / "data" / "earlier_run"


def names(text: str) -> set[str]:
    return set(text.split())


PLAN = {"direction_scope", "direction_index", "kernels", "row_normalization", "rank"}
PROMPTS = (
    "good_prompts bad_prompts good_evaluation_prompts bad_evaluation_prompts protected_prompts"
)
REPRODUCED = names(
    f"model model_commit dtypes quantization max_response_length response_prefix "
    f"chain_of_thought_skips chat_template_kwargs system_prompt refusal_markers {PROMPTS} "
    f"direction_method orthogonalize_direction row_normalization winsorization_quantile max_rank "
    f"goal residual_writers n_startup_trials search search_space plans_at_once racing "
    f"deterministic scorers scorer"
)
"""Settings that decide what a search finds."""

SETTINGS = REPRODUCED | names(
    "evaluate_model device_map max_memory batch_size max_batch_size preset "
    "behavior good_held_out_prompts bad_held_out_prompts kl_divergence_scale n_trials seed "
    "patience start_plans study_checkpoint_dir print_residual_geometry plot_residuals "
    "residual_plot_path residual_plot_title residual_plot_style export_strategy max_shard_size "
    "checkpoint_action trial_index model_action save_directory upload_repo_id "
    "upload_repo_private n_additional_trials benchmarks benchmark_limit "
    "benchmark_original"
)
"""All settings but those by which code of others runs: no file decides them."""

VERSIONS = {"heretic-llm", "python", "torch", "transformers", "accelerate", "optuna", "numpy"}
FOUND = {"batch_size", "dtype", "response_prefix"}

KEYS: dict[str, dict[str, set[str]]] = {
    "manifest.json": {
        "": {"schema_version", "model", "digest", "seed", "created"}
        | {"fingerprint", "settings", "found", "versions"},
        "fingerprint": REPRODUCED - names(PROMPTS) - {"model_commit"} | {"prompts"},
        "settings": SETTINGS,
        "found": FOUND | {"baseline", "components", "device", "hidden_size", "layers"},
        "versions": VERSIONS,
    },
    "front.json": {
        "": {"trial", "scores", "plan"},
        "scores": {"refusals", "kl_divergence", "detector"},
        "plan": PLAN,
    },
    "abliteration_params.json": {
        "": {"schema_version", "heretic_version", "base_model", "base_model_revision", "trial"}
        | {"strategy", "plan", "weights", "scores"},
        "plan": PLAN,
        "weights": {"attn.o_proj", "mlp.down_proj"},
        "scores": {"before", "after", "held_out", "verified"},
    },
    "reproduce.json": {
        "": {"schema_version", "heretic_version", "settings", "found", "plan", "trial", "seed"}
        | {"strategy", "max_shard_size", "scores", "versions", "hardware", "files"}
        | {"directions_sha256"},
        "settings": REPRODUCED,
        "found": FOUND,
        "plan": PLAN,
        "scores": {"before", "after", "verified"},
        "versions": VERSIONS,
        "hardware": {"device", "cores", "machine", "processor", "system", "threads"}
        | {"cpu_capability"},
        "files": {"model.safetensors", "config.json", "tokenizer.json"},
    },
    "runs": {
        "": {"path", "model", "state", "completed", "failed", "n_trials", "front", "created"}
        | {"updated", "note"},
    },
    "batch": {
        "": {"file", "folder", "report", "jobs"},
        "jobs": {"name", "model", "state", "note", "folder", "run", "completed", "failed"}
        | {"n_trials", "front", "seconds", "original", "best", "chosen"},
    },
    "inspect": {
        "": {"model", "model_type", "class_name", "n_layers", "hidden_size", "parameters", "layers"}
        | {"weight_bytes", "weights_here", "cache_bytes_per_token", "carried_bytes"}
        | {"writers", "left_out", "discovered", "preset", "verified"},
        "writers": {"component", "path", "layers", "shape", "transposed", "experts", "norm"}
        | {"edit"},
    },
    "doctor": {
        "": {"ok", "findings", "device", "rates", "fits", "basis"},
        "findings": {"name", "state", "found", "remedy"},
        "device": {"name", "memory", "is_cpu"},
        "rates": {"products", "copies"},
        "fits": {"model", "format", "fits", "rows", "memory", "trial_seconds", "search_seconds"},
    },
    "evaluate": {
        "": {"model", "against", "baseline", "scores", "differences"},
        "baseline": {"refusals", "kl_divergence", "detector"},
        "scores": {"refusals", "kl_divergence", "detector"},
        "differences": {"refusals", "kl_divergence", "detector"},
    },
    "compare": {
        "": {"model", "against", "kind", "verdict", "tensors", "differences", "directions", "parts"}
        | {"files", "scores", "baseline", "score_differences", "not_scored", "claims"},
        "tensors": {"compared", "different"},
        "differences": {"name", "shape", "dtype", "dtype_before", "kind", "relative", "rank"}
        | {"rank_is_lower_bound", "rows_rescaled", "row_norms_kept", "largest_norm_change"}
        | {"experts", "experts_changed"},
        "directions": {"tensors", "shared", "by_layer", "smallest_overlap", "median_overlap"}
        | {"smallest_overlap_within_layers"},
        "claims": {"name", "text", "value", "measured"},
    },
    "audit": {"": {"folder", "failed", "findings"}},
}
"""By file or command: the names at the top, and those one level below each. More may come."""

BEFORE_AFTER = ("before", "after")
BELOW = {
    "score of a list": {"name", "value", "display", "optimization", "interval"},
    "score": {"value", "display", "interval"},
    "difference": {"difference", "interval", "p"},
    "held_out": {"before", "after", "good", "bad"},
    "file": {"sha256", "size"},
}


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def one(value: Any) -> Any:
    """The first of a list, as they are all alike."""
    return value[0] if isinstance(value, list) else value


def missing(found: Any, expected: dict[str, set[str]]) -> dict[str, set[str]]:
    """Names that are not there, by where they are looked for."""
    top = one(found)
    gone = {
        where: wanted - set(one(top[where]) if where else top)
        for where, wanted in expected.items()
        if not where or where in top
    }
    return {where: wanted for where, wanted in gone.items() if wanted}


def test_no_name_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is written anew, from the prompts and the model of an earlier run."""
    shutil.copytree(EARLIER, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    saved = ["--model-action", "save", "--save-directory", "edited", "--export-strategy", "merge"]
    searched = ["--n-trials", "1", "--study-checkpoint-dir", "new", "--trial-index", "0"]
    assert run([*searched, *saved]) == 0

    def told(*arguments: str) -> Any:
        capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (folder,) = Path("new").iterdir()
    defaults = tomllib.loads(Path("config.toml").read_text("utf-8"))
    batch = tomlkit.dumps({"defaults": defaults, "job": [{"name": "a"}]})
    Path("batch.toml").write_text(batch, encoding="utf-8")
    found = {
        "manifest.json": written(folder / "manifest.json"),
        "front.json": written(folder / "front.json"),
        "abliteration_params.json": written(Path("edited") / "abliteration_params.json"),
        "reproduce.json": written(Path("edited") / "reproduce.json"),
        "runs": told("runs"),
        "batch": told("batch", "batch.toml", "--check"),
        "inspect": told("inspect", "model"),
        "doctor": told("doctor"),
        "evaluate": told("evaluate", "edited", "--against", "model"),
        "compare": told("compare", "edited", "model", "--no-scores"),
        "audit": told("audit", "edited"),
    }
    gone = {what: missing(found[what], expected) for what, expected in KEYS.items()}
    assert {what: wanted for what, wanted in gone.items() if wanted} == {}

    scores = found["abliteration_params.json"]["scores"]
    assert BELOW["held_out"] <= set(scores["held_out"])
    for figures in (scores, scores["held_out"], found["reproduce.json"]["scores"]):
        assert all(BELOW["score of a list"] <= set(one(figures[when])) for when in BEFORE_AFTER)
    assert BELOW["score of a list"] <= set(one(found["manifest.json"]["found"]["baseline"]))
    assert BELOW["file"] <= set(found["reproduce.json"]["files"]["model.safetensors"])
    assert BELOW["score"] <= set(found["evaluate"]["scores"]["refusals"])
    assert BELOW["difference"] <= set(found["evaluate"]["differences"]["refusals"])


def test_what_is_missing_is_found() -> None:
    expected = {"": {"a", "b"}, "a": {"c"}}
    assert missing([{"a": [{"c": 1}], "b": 0}], expected) == {}
    assert missing({"a": {"d": 1}}, expected) == {"": {"b"}, "a": {"c"}}
