"""Loads a model and its tokenizer: tries dtypes, chooses devices, sets the padding."""

from __future__ import annotations

import inspect
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from heretic.architectures.verify import Structure, resolve
from heretic.errors import HereticError, ModelError, SettingsError, is_of_interruption
from heretic.events import Notice, Reporter
from heretic.model.adapters import check_adapter, has_tokenizer, merged
from heretic.model.completeness import read_weights, summary
from heretic.model.failures import model_errors, reason
from heretic.model.files import check_adapter_weights, check_files, explained, reading, weight_files
from heretic.model.generation import greedy, own_generation_config, without_plain_cache
from heretic.model.limits import Limits, limits_of, mend_padding
from heretic.model.promises import check_size
from heretic.model.source import ModelSource, base_of, dequantising, forget_quantisation, origin
from heretic.model.unpacking import (
    check_not_twice,
    is_unpacked,
    load_unpacked,
    quantisation_in,
    told_before,
)
from heretic.quantised.kinds import Quantisation
from heretic.system import machine
from heretic.system.adapters import ADAPTER_CONFIG, Adapter
from heretic.system.hub import base_folder, is_local

CHECKED_TEXT = (
    "Hello, how are you? The weather is fine today, so we went for a walk along the river and "
    "counted the boats: seven of them were blue, and one had a dog on board."
)
"""Text of the first forward pass: it has more tokens than a layer has modules."""


CASTING = "bitsandbytes.autograd._functions"
"""The logger that says of every 8-bit product that its inputs are cast, which they always are."""


@dataclass(frozen=True, kw_only=True)
class LoadingOptions(ModelSource):
    """How a model is loaded. The fields are the settings of the same names."""

    dtypes: tuple[str, ...]
    quantization: str
    device_map: str | Mapping[str, str | int]
    max_memory: Mapping[int | str, int | str] | None
    residual_writers: tuple[str, ...]
    deterministic: bool
    allow_pickle: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has passed its test, with its tokenizer and residual writers.

    Attributes:
        remarks: What the user should know about how it was loaded, in sentences.
    """

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    structure: Structure
    remarks: tuple[str, ...] = ()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16, AMX, or Arm's BF16)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """Turn a dtype setting into what `from_pretrained` takes.

    On a CPU, `auto` is bfloat16 if the processor has it natively and float32 otherwise, since
    emulated half precision is several times slower. On an accelerator it is the checkpoint's dtype.

    Raises:
        SettingsError: No floating dtype has that name.
    """
    if name == "auto":
        if device.type != "cpu":
            return "auto"
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SettingsError(
            f"Unknown dtype {name!r} in dtypes.",
            remedy="Use auto, float16, bfloat16, float32 or float64.",
        )
    return dtype


def load(options: LoadingOptions, reporter: Reporter) -> Loaded:
    """Load `options.model`, trying each dtype in turn.

    Raises:
        ModelError: The model is missing, gated or fails with every dtype.
        SettingsError: A dtype is unknown, or what is quantised is to be quantised again.
        UnsupportedModelError: Its residual writers are not known.
    """
    if machine.accelerator().type == "cpu":
        machine.prepare_cpu()
    adapter = check_source(options)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
        torch.use_deterministic_algorithms(True)
    tokenizer = load_tokenizer(options)
    source, failures, padding = base_of(options), [], None
    found = quantisation(source)
    check_not_twice(found, source.model, source.quantization)
    if found is not None:
        dtype = resolve_dtype(source.dtypes[0], machine.accelerator())
        reporter.emit(Notice(told_before(source, found, dtype)))
    generation, said = own_generation_config(base_folder(source.model, source.model_commit))
    for name in options.dtypes:
        try:
            with explained(source.model), quiet(), model_errors(source.model):
                model, unread = _load_weights(source, name, generation)
                if adapter is not None:
                    model = merged(model, adapter)
                limits = limits_of(model, source.model)
                padding = mend_padding(tokenizer, limits.ids) or padding
                structure = _check(model, tokenizer, options.residual_writers, limits)
        except HereticError:
            raise
        except Exception as error:  # whatever the error, the next dtype is tried
            if is_of_interruption(error):
                raise
            failures.append((name, reason(error)))
            reporter.emit(Notice(f"Could not load as {name}: {failures[-1][1]}", level="warning"))
            model = None
            machine.free_memory()
            continue
        remarks = [text for text in (padding, said) if text is not None]
        remarks += _remarks(adapter, unread)
        return Loaded(model, tokenizer, model.dtype, structure, tuple(remarks))
    raise _failed(options.model, failures)


def quantisation(source: ModelSource) -> Quantisation | None:
    """How the weights of a checkpoint are quantised; None if they are not, or in a GGUF file.

    Raises:
        ModelError: The configuration cannot be read, or they are quantised in an unknown way.
    """
    source = base_of(source)
    return None if source.is_gguf else quantisation_in(configuration(source), source.model)


def _failed(model: str, failures: Sequence[tuple[str, str]]) -> ModelError:
    """The error for a model that no dtype could run, with the reason of each dtype."""
    reasons = {text for _, text in failures}
    if len(reasons) == 1 and len(failures) > 1:  # then it is not the dtype
        return ModelError(
            f"{model} could not be run: {reasons.pop()}",
            remedy="Check its config.json; or try another `quantization` or `device_map`.",
        )
    listed = "; ".join(f"{name}: {text.rstrip('.')}" for name, text in failures)
    return ModelError(
        f"{model} could not be run with any dtype ({listed}).",
        remedy="Try other `dtypes`, `quantization` or `device_map`; or check its config.json.",
    )


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer, set to pad on the left, with a pad token.

    Raises:
        ModelError: The model has no tokenizer that can be used.
    """
    if not source.is_gguf:
        configuration(source)  # read by the tokenizer's class too, which would get the blame
    place, arguments = tokenizer_origin(source)
    with explained(source.model), quiet(), model_errors(place, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
        tokenizer.decode(tokenizer(CHECKED_TEXT)["input_ids"])
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"The tokenizer of {source.model} has no token to pad with.",
            remedy="Set pad_token in its tokenizer_config.json.",
        )
    return tokenizer


def check_source(options: LoadingOptions, *, merged: bool = True) -> Adapter | None:
    """Look at the model's files before the long work; see `check_files` and `check_adapter`.

    Args:
        merged: Whether an adapter will be merged into its base.

    Returns:
        The adapter, if the model is one.

    Raises:
        ModelError: The model is not there, or its files are not what they should be.
        SettingsError: It is an adapter, and its base is to be quantised.
    """
    check_files(options.model, options.model_commit, options.allow_pickle)
    adapter = options.adapter
    if adapter is not None:
        check_adapter(adapter, options.quantization if merged else "none")
        with model_errors(adapter.place):
            check_adapter_weights(adapter, options.allow_pickle)
        try:
            check_files(adapter.base, adapter.base_revision, options.allow_pickle)
        except ModelError as error:
            raise ModelError(
                f"{adapter.place} is an adapter, and its base cannot be loaded: {error.message}",
                remedy=f"Name its base as base_model_name_or_path in {ADAPTER_CONFIG}. "
                + (error.remedy or ""),
            ) from error
    return adapter


def _remarks(adapter: Adapter | None, unread: Sequence[str]) -> list[str]:
    remarks = []
    if adapter is not None:
        remarks.append(f"{adapter.place} is an adapter: it is merged into its base, {adapter.base}")
    if unread:
        count = "1 tensor" if len(unread) == 1 else f"{len(unread)} tensors"
        remarks.append(f"{count} in the files belong to nothing in the model: {summary(unread)}")
    return remarks


def tokenizer_origin(source: ModelSource) -> tuple[str, dict[str, Any]]:
    """`origin` for the tokenizer: an adapter's own if it has one, else its base's."""
    adapter = source.adapter
    if adapter is not None and has_tokenizer(adapter):
        return origin(source)
    return origin(base_of(source))


def _load_weights(
    options: LoadingOptions, dtype_name: str, generation: Mapping[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """The model, and the names of tensors in its files that belong to nothing in it.

    Args:
        generation: From `own_generation_config`.
    """
    device = machine.accelerator()
    place, arguments = origin(options)
    arguments["dtype"] = resolve_dtype(dtype_name, device)
    if options.is_gguf:
        arguments |= dequantising(options.model, options.quantization)
        if arguments["dtype"] == "auto":  # would be float32, for numbers of few bits
            arguments["dtype"] = torch.bfloat16
    else:
        arguments |= {**reading(options.allow_pickle), **generation}
    if device.type != "cpu":
        arguments["device_map"] = options.device_map
        if options.max_memory is not None:
            arguments["max_memory"] = options.max_memory
    if options.quantization != "none":
        logging.getLogger(CASTING).addFilter(_no_casts)
        arguments["quantization_config"] = _quantization(options.quantization)
    config = configuration(options)
    auto, quantised = auto_class(config), quantisation(options)
    if _pads_outside(config):
        arguments["pad_token_id"] = None
    folder = base_folder(options.model, options.model_commit) if is_local(options.model) else None
    if folder is not None and not options.is_gguf:
        found = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
        check_size(skeleton(options), found, options.model)
    if options.is_gguf:
        with redirect_stderr(io.StringIO()):  # its reader's bar cannot be switched off
            model, unread = read_weights(auto, place, options.model, arguments)
        forget_quantisation(model)
    elif quantised is not None and is_unpacked(quantised):
        model, unread = load_unpacked(options, quantised, skeleton(options), arguments)
    else:
        model, unread = read_weights(auto, place, options.model, arguments)
    return model.eval().requires_grad_(False), unread


def auto_class(config: Any) -> Any:
    """The class to load a model with; a multimodal model is loaded whole.

    If `architectures` in the configuration names the text model alone, only that is loaded.
    """
    multimodal = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = (config.architectures or [None])[0]
    if multimodal is not None and (causal is None or named == multimodal):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def skeleton(source: ModelSource) -> Any:
    """The model without weights, from its configuration.

    Raises:
        ModelError: The configuration cannot be read.
    """
    source = base_of(source)
    config = configuration(source)
    if _pads_outside(config):
        config.pad_token_id = None
    with quiet(), model_errors(source.model, "configuration"), torch.device("meta"):
        consent = source.trust_remote_code
        return auto_class(config).from_config(config, trust_remote_code=consent).eval()


def configuration(source: ModelSource) -> Any:
    """The model's configuration, a transformers `PretrainedConfig`.

    Raises:
        ModelError: It cannot be read or used.
    """
    place, arguments = origin(base_of(source))
    with model_errors(base_of(source).model, "configuration"):
        config = AutoConfig.from_pretrained(place, **arguments)
        if not isinstance(config.architectures, list | None):
            raise TypeError(f"architectures is {config.architectures!r:.80}, not a list")
        return config


def _pads_outside(config: Any) -> bool:
    """Whether the pad token has no embedding, which torch takes for an error.

    The tokenizer's pad token counts, not this one; see `mend_padding`.
    """
    token, ids = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    return isinstance(token, int) and isinstance(ids, int) and not -ids <= token < ids


def load_processor(source: ModelSource, config: Any) -> Any:
    """The processor of a multimodal model; None for other models, or if it cannot be loaded.

    Args:
        config: The model's configuration.
    """
    if auto_class(config) is not AutoModelForImageTextToText:
        return None
    place, arguments = origin(base_of(source))
    with quiet():
        try:
            return AutoProcessor.from_pretrained(place, **arguments)
        except Exception:  # whatever is wrong with it
            return None  # only text is edited; export copies the processor's files


def _no_casts(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.getMessage()


def _quantization(kind: str) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _check(model: nn.Module, tokenizer: Any, by_hand: Sequence[str], limits: Limits) -> Structure:
    """Test one forward pass: logits are finite, and the writers explain every layer's output.

    A model that transformers' `generate` has to decode, makes two tokens too.

    Raises:
        FloatingPointError: Logits are not finite in this dtype.
        ModelError: The tokenizer's tokens have no embeddings.
        UnsupportedModelError: See `resolve`.
    """
    device = next(model.parameters()).device
    row = tokenizer(CHECKED_TEXT).input_ids[: limits.positions]
    limits.check_ids([row], tokenizer)
    ids = torch.tensor([row], device=device)
    accepted = inspect.signature(model.forward).parameters
    no_cache = {"use_cache": False} if "use_cache" in accepted else {}
    logits = []

    def forward() -> None:
        logits.append(model(input_ids=ids, **no_cache).logits[:, -1])

    structure = resolve(model, forward, by_hand)
    if not structure.layers:
        raise ModelError(
            "The model has no decoder layers.", remedy="Mend its config.json, or download it again."
        )
    if not logits[0].isfinite().all():
        raise FloatingPointError("the test generation gave logits that are not finite")
    if without_plain_cache(model) is not None:  # more of the configuration counts there
        start = ids[:, :1]  # the whole text may fill the table of positions
        greedy(model, start, torch.ones_like(start), max_new_tokens=2, end=frozenset())
    return structure


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars; Heretic shows its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
