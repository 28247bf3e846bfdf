"""The group Export of the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from heretic.config.declaration import LARGEST, FieldGroup, FromHome, Optionally, as_list, setting
from heretic.config.sizes import checked_size
from heretic.records.choices import RowName


def as_row(value: Any) -> Any:
    """A row of a front: a whole number, also as text, or one of the names.

    Raises:
        ValueError: It is neither.
    """
    text = str(value).strip()
    if value is None or text in get_args(RowName):
        return value if value is None else text
    is_number = not isinstance(value, bool | float) and re.fullmatch(r"\d{1,10}", text, re.ASCII)
    if not is_number or int(text) > LARGEST:
        names = ", ".join(get_args(RowName))
        raise ValueError(f"should be the number of a row, such as 0, or one of {names}")
    return int(text)


class ExportFields(FieldGroup):
    """What happens to the chosen trial."""

    model_action: Annotated[
        Literal["save", "upload", "chat", "benchmark", "none"] | None, Optionally
    ] = setting(
        None,
        "Export",
        "What to do with the chosen trial: save, upload, chat, benchmark, none. Unset: ask.",
        example="save",
        scores=False,
    )
    trial_index: Annotated[int | RowName | None, BeforeValidator(as_row), Optionally] = setting(
        None,
        "Export",
        "Row of the front to choose: its number, or its name: fewest, knee, least-damage. Numbers "
        "count from 0 as shown, by refusals, then by KL divergence. fewest is most where refusals "
        "are maximized; knee is the best trade-off. Unset: ask; without a terminal max_refusals "
        "chooses, if it is set.",
        example="knee",
        scores=False,
    )
    export_strategy: Annotated[Literal["merge", "adapter", "gguf"] | None, Optionally] = setting(
        None,
        "Export",
        "What to save: merge (whole edited weights), adapter (PEFT), or gguf (as merge, with GGUF "
        "files of it in a folder beside it, each scored in llama.cpp). Unset: ask.",
        example="merge",
        scores=False,
    )
    gguf_types: Annotated[tuple[str, ...], BeforeValidator(as_list)] = setting(
        ("q8_0", "q4_k_m"),
        "Export",
        "Types of GGUF files where export_strategy is gguf, by llama.cpp's names.",
        scores=False,
    )
    max_shard_size: Annotated[str, AfterValidator(checked_size)] = setting(
        "5GB",
        "Export",
        "Largest size of a weight file where weights are saved from memory: a number and KB, MB, "
        "GB or TB. Copies of the base model's safetensors files are split as those are.",
        scores=False,
    )
    save_directory: Annotated[Path | None, FromHome, Optionally] = setting(
        None,
        "Export",
        "Folder to save the edited model in. Unset: ask.",
        example="edited-model",
        scores=False,
    )
    upload_repo_id: Annotated[str | None, Optionally] = setting(
        None,
        "Export",
        "Hub repository to upload the edited model to. Unset: ask.",
        example="me/edited-model",
        scores=False,
    )
    upload_repo_private: Annotated[bool | None, Optionally] = setting(
        None,
        "Export",
        "Whether a newly made Hub repository is private. Unset: ask.",
        example=True,
        scores=False,
    )
    benchmarks: Annotated[tuple[str, ...] | None, Optionally, BeforeValidator(as_list)] = setting(
        None,
        "Export",
        "Benchmarks (lm-evaluation-harness tasks) to run. Unset: ask.",
        example=["mmlu"],
        scores=False,
    )
    benchmark_original: Annotated[bool | None, Optionally] = setting(
        None,
        "Export",
        "Whether benchmarks run on the original model too, for the differences. Unset: ask; "
        "without a terminal they do.",
        example=True,
        scores=False,
    )
    benchmark_limit: Annotated[int | None, Optionally] = setting(
        None,
        "Export",
        "Use only this many documents of each benchmark task, the first ones. For trying out: such "
        "figures cannot be compared with published ones. Unset: all.",
        example=100,
        ge=1,
        le=LARGEST,
        scores=False,
    )
    benchmark_path: Annotated[Path | None, FromHome, Optionally] = setting(
        None,
        "Export",
        "Folder with benchmark tasks of your own (YAML files of the lm-evaluation-harness). Python "
        "code that they name is run.",
        example="my-tasks",
        scores=False,
        consent=True,
    )
