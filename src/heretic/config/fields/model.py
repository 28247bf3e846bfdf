"""The group Model of the settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from heretic.config.declaration import FieldGroup, FromHome, Optionally, Texts, as_table, setting


def _device_numbers(value: Any) -> Any:
    """Device numbers as integers, as Accelerate wants them; keys in TOML and JSON are texts."""
    if not isinstance(value, dict):
        return value
    return {int(key) if str(key).isdigit() else key: limit for key, limit in value.items()}


MemoryLimits = Annotated[
    dict[int | str, int | str] | None,
    BeforeValidator(_device_numbers),
    BeforeValidator(as_table),
    Optionally,
]


class ModelFields(FieldGroup):
    """What is loaded, and how."""

    model: Annotated[str, FromHome] = setting(
        "",
        "Model",
        "Hub id, folder or GGUF file (path, or org/model/file.gguf on the Hub) of the model to "
        "edit.",
        example="org/model",
    )
    model_commit: Annotated[str | None, Optionally] = setting(
        None, "Model", "Revision of the model: branch, tag or commit.", example="main"
    )
    evaluate_model: Annotated[str | None, FromHome, Optionally] = setting(
        None,
        "Model",
        "Evaluate this model (Hub id or folder) against `model` instead of searching.",
        example="org/edited-model",
        scores=False,
    )
    dtypes: Texts = setting(
        ("auto", "float16", "bfloat16", "float32"),
        "Model",
        "Data types to load the model in, tried in turn until a test generation works.",
        min_length=1,
    )
    quantization: Literal["none", "bnb_4bit", "bnb_8bit"] = setting(
        "none",
        "Model",
        "Quantization while searching: none, bnb_4bit (nf4, double quantization), bnb_8bit.",
    )
    device_map: Annotated[str | dict[str, str | int], BeforeValidator(as_table)] = setting(
        "auto", "Model", "Device map, passed to Accelerate: a name or a table.", scores=False
    )
    max_memory: MemoryLimits = setting(
        None,
        "Model",
        "Memory limit for each device, passed to Accelerate.",
        example={"0": "20GB", "cpu": "64GB"},
        scores=False,
    )
    trust_remote_code: bool = setting(
        False,
        "Model",
        "Run code that comes with the model. Never switched on by anything but you.",
        scores=False,
        consent=True,
    )
    allow_pickle: bool = setting(
        False,
        "Model",
        "Load weights that are stored as pickles (.bin) if a model has no safetensors files. Only "
        "tensors are taken from them, but a pickle is a program that the loader interprets.",
        scores=False,
        consent=True,
    )
    residual_writers: Texts = setting(
        (),
        "Model",
        "Modules that write to the residual stream, in addition to those that Heretic knows: paths "
        "within a layer, such as mlp.down_proj. Only for models that it does not know.",
    )
    preset: str = setting(
        "auto",
        "Model",
        "Settings that the model's family needs; whatever you set yourself overrides them. auto "
        "(the preset that fits the model), none, the name of a preset, or a TOML file with presets "
        "of your own, which are tried before the built-in ones.",
        scores=False,  # the settings that it sets do
    )
