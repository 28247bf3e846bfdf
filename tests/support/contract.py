"""What must hold for every model type that Heretic edits.

    python -m tests.support.contract [TYPE ...] [--write]

Each type (by default all) is a tiny random model (`tests.support.zoo`) in float32. `--write` makes
docs/models.md of it.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from heretic.architectures import Structure, resolve
from heretic.architectures.resolver import hidden_size
from heretic.architectures.streams import reduced, side_by_side
from heretic.architectures.table import WRITERS
from heretic.errors import UnsupportedModelError
from heretic.events import Silent
from heretic.export.safetensors import stream
from heretic.export.safetensors.checkpoint import read_checkpoint
from heretic.export.safetensors.sources import StreamError
from heretic.method.fits import Fit
from heretic.model.capture import forward_arguments, last_residuals
from heretic.model.completeness import read_weights
from heretic.model.editing import EditFactory, RowEdits, WeightEditor
from heretic.model.generation import greedy
from heretic.records import AnyKernel, FittedKernel, LayerWeights, Plan, RowNormalization
from tests.support.zoo import MODEL_TYPES, NOT_BUILT, text_inputs, tiny_model
from tests.support.zoo.overrides import TOWERS

COMPONENTS = tuple(WRITERS)
VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")
TOLERANCE = 2e-4
"""Of logits, relative to the largest change that the edit makes, in float32."""

ROWS, NEW_TOKENS = 3, 3

PlanOf = Callable[["Case"], Plan]
"""Makes a plan for a model."""


@dataclass
class Case:
    """A tiny model with what every check needs.

    Attributes:
        inputs: Arguments of a forward call, `ROWS` rows of different text.
        known: Logits while a plan is hooked, or none, which several checks compare with.
    """

    model_type: str
    model: Any
    structure: Structure
    directions: Tensor
    inputs: Mapping[str, Any]
    known: dict[Plan | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model_type: str) -> Case:
        """Build and resolve.

        Raises:
            UnsupportedModelError: Its writers are not known.
        """
        model = tiny_model(model_type)
        inputs = text_inputs(model_type, model.config, batch=ROWS)
        structure = resolve(model, lambda: _run(model, inputs))
        hidden = structure.writers[0].weight().shape[0]
        generator = torch.Generator().manual_seed(3)
        directions = torch.randn(len(structure.layers) + 1, hidden, generator=generator)
        directions = torch.nn.functional.normalize(directions, dim=-1)
        return cls(model_type, model, structure, directions, inputs)

    def logits(self) -> Tensor:
        """After the last position, [rows, vocabulary]."""
        return _run(self.model, self.inputs)

    @property
    def before(self) -> Tensor:
        """The logits of the original, computed once."""
        if None not in self.known:
            self.known[None] = self.logits()
        return self.known[None]

    def hooked(self, plan: Plan) -> Tensor:
        """The logits while that plan is hooked for all rows, computed once."""
        if plan not in self.known:
            edits = self.factory().edits(plan, self.directions)
            with RowEdits(self.structure.writers, [edits]).installed():
                self.known[plan] = self.logits()
        return self.known[plan]

    def plan(self, variant: RowNormalization, seed: int = 0) -> Plan:
        """Every writer edited, each layer by another weight."""
        generator = torch.Generator().manual_seed(seed)
        layers = len(self.structure.layers)
        kernels = {
            name: LayerWeights(
                tuple((0.5 + float(torch.rand((), generator=generator)),) for _ in range(layers))
            )
            for name in self.components
        }
        return _plan(kernels, variant)

    @property
    def components(self) -> list[str]:
        """Names of the components that the model has, sorted."""
        return sorted({writer.component for writer in self.structure.writers})

    def fit(self) -> Fit:
        """A fit at random, whose read vectors are no copies of what it writes."""
        shape = (2, len(self.components), *self.directions[1:].unsqueeze(1).shape)
        generator = torch.Generator().manual_seed(5)
        write, read = (torch.randn(shape, generator=generator) for _ in range(2))
        unit = torch.nn.functional.normalize(read, dim=-1)
        return Fit(tuple(self.components), 0.5 * (unit + write / shape[-1] ** 0.5), unit)

    def fitted(self, variant: RowNormalization, position: float = 0.4) -> Plan:
        """A place on the fit's path, which edits every writer."""
        digest = self.fit().digest
        kernels = {name: FittedKernel(digest, position, 0.9) for name in self.components}
        return _plan(kernels, variant)

    def factory(self) -> EditFactory:
        """Makes edits of both kinds of plan."""
        factory = EditFactory(self.structure.writers)
        factory.fits.add(self.fit())
        return factory


def _plan(kernels: Mapping[str, AnyKernel], variant: RowNormalization) -> Plan:
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels=kernels,
        row_normalization=variant,
    )


def _run(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**{**inputs, **_no_cache(model)}).logits[:, -1]
    return logits


def _no_cache(model: Any) -> dict[str, bool]:
    accepted = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in accepted else {}


def same_logits(found: Tensor, wanted: Tensor, before: Tensor) -> None:
    """The edit does what it is meant to, and does something."""
    change = float((wanted - before).abs().max())
    assert change > 1e-4, f"the edit changes nothing (largest change {change:.1e})"
    deviation = float((found - wanted).abs().max()) / change
    assert deviation < TOLERANCE, f"logits are {deviation:.1e} of the change apart"


def hooked_is_edited(case: Case, plan: PlanOf) -> None:
    """Edited while running = edited in the weights; restored, all is as before, bit for bit."""
    writers, before = case.structure.writers, case.before
    edits = case.factory().edits(plan(case), case.directions)
    assert set(edits) == {writer.name for writer in writers}
    hooked = case.hooked(plan(case))
    assert torch.equal(case.logits(), before)
    editor = WeightEditor(writers)
    editor.apply(edits)
    edited = case.logits()
    editor.restore()
    assert torch.equal(case.logits(), before)
    same_logits(hooked, edited, before)


def rows_have_their_own_plans(case: Case, own: Sequence[PlanOf]) -> None:
    """Rows of one batch under different plans = each plan alone."""
    factory = case.factory()
    plans = [plan(case) for plan in own]
    edits = [factory.edits(plan, case.directions) for plan in plans]
    mixed = RowEdits(case.structure.writers, edits)
    mixed.use_index(torch.arange(ROWS))
    with mixed.installed():
        together = case.logits()
    for row, plan in enumerate(plans):
        same_logits(together[row], case.hooked(plan)[row], case.before[row])


def residuals_are_layer_outputs(case: Case) -> None:
    """What is captured is what the model itself calls its hidden states, but for the last."""
    ids = case.inputs["input_ids"]
    layers = case.structure.layers
    found = last_residuals(case.model, layers, ids, torch.ones_like(ids))
    assert found.shape[:2] == (len(ids), len(layers) + 1)
    assert found.isfinite().all()
    with torch.inference_mode():
        arguments = forward_arguments(case.model, torch.ones_like(ids)) | _no_cache(case.model)
        output = case.model(input_ids=ids, output_hidden_states=True, **arguments)
    states = getattr(output, "hidden_states", None)
    if states is not None and len(states) == len(layers) + 1:
        # Most begin with the embeddings; some (Mamba) with the first layer's output.
        width = hidden_size(case.model)
        streams = [side_by_side(layers[0], state, width)[:, -1].float() for state in states[:-1]]
        kept = torch.stack([reduced(layers[0], each) for each in streams], dim=1)
        close = [
            torch.allclose(found[:, shift : len(layers) + shift], kept, rtol=1e-4, atol=1e-4)
            for shift in (0, 1)
        ]
        assert any(close), "captured residuals are not the model's hidden states"


def replies_are_the_edited_models(case: Case) -> None:
    """Greedy replies while hooked = those of the edited weights."""
    writers = case.structure.writers
    edits = EditFactory(writers).edits(case.plan("none"), case.directions)

    def replies() -> list[list[int]]:
        ids = case.inputs["input_ids"]
        arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "end": frozenset()}
        return greedy(case.model, ids, torch.ones_like(ids), **arguments)

    with RowEdits(writers, [edits]).installed():
        hooked = replies()
    editor = WeightEditor(writers)
    editor.apply(edits)
    edited = replies()
    editor.restore()
    assert hooked == edited
    assert all(len(reply) == NEW_TOKENS for reply in hooked)


def saved_is_edited(case: Case, plan_of: PlanOf, *, read: bool = False) -> None:
    """What is streamed from the base's files has the tensors of the edited model saved from memory.

    Args:
        read: Read that model again too: it is the edited one. How it is read does not depend on
            the values of its tensors, so one plan is enough.
    """
    writers, plan = case.structure.writers, plan_of(case)
    editor = WeightEditor(writers)
    with tempfile.TemporaryDirectory() as name:
        base, merged, other = (Path(name) / part for part in ("base", "merged", "streamed"))
        case.model.save_pretrained(base)
        is_streamed = streamed(case, plan, base, other)
        if not (is_streamed or read):
            return
        editor.apply(case.factory().edits(plan, case.directions))
        case.model.save_pretrained(merged)
        editor.restore()
        if read:
            same_logits(_read(case, merged), case.hooked(plan), case.before)
        if is_streamed:
            same_tensors(other, merged, base)


def same_tensors(found: Path, wanted: Path, base: Path) -> None:
    """Two saved models are one, and tensors that the edit leaves alone are the base's bits."""
    tensors, others, before = (_tensors(folder) for folder in (found, wanted, base))
    assert set(tensors) == set(others)
    for name, tensor in tensors.items():
        if torch.equal(others[name], before[name]):
            assert torch.equal(tensor, before[name]), f"{name} is not the base's"
            continue
        change = float((others[name] - before[name]).abs().max())
        deviation = float((tensor - others[name]).abs().max()) / change
        assert deviation < TOLERANCE, f"{name} is {deviation:.1e} of the change apart"


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _read(case: Case, folder: Path) -> Tensor:
    """Logits of a saved model, all of whose weights are in its files."""
    # The configuration's own class cannot read what stands in for another library's tower.
    given = {"config": case.model.config} if case.model_type in TOWERS else {}
    model, unread = read_weights(type(case.model), str(folder), case.model_type, given)
    assert not unread, f"nothing reads {unread}"
    return _run(model.eval(), case.inputs)


def streamed(case: Case, plan: Plan, base: Path, folder: Path) -> bool:
    """Stream the base's files; False where it would be saved from memory instead."""
    source = read_checkpoint(base)
    assert source is not None
    loaded: Any = SimpleNamespace(
        model=case.model, writers=case.structure.writers, fits=case.factory().fits
    )
    try:
        edits = stream.tensor_edits(
            case.model, source, stream.parameter_edits(loaded, plan, case.directions)
        )
    except StreamError:
        return False
    folder.mkdir()
    stream.write_streamed(source, edits, folder, Silent())
    shutil.copy(base / "config.json", folder)
    return True


def adapters_are_exact(case: Case, plan: PlanOf) -> None:
    """An adapter's factors, merged as PEFT merges them, are the edited weights.

    Experts are stacked in one parameter, which no adapter can hold.
    """
    edits = case.factory().edits(plan(case), case.directions)
    for writer in case.structure.writers:
        if writer.expert is not None:
            continue
        weight, edit = writer.weight().double(), edits[writer.name]
        factor, wanted = edit.low_rank(writer.weight()), edit.edited_weight(writer.weight())
        assert len(factor.a) == plan(case).rank
        merged = weight + factor.b.double() @ factor.a.double()
        if factor.magnitude is not None:
            merged = torch.nn.functional.normalize(merged, dim=1) * factor.magnitude[:, None]
        torch.testing.assert_close(merged.float(), wanted, rtol=1e-4, atol=1e-6)


def _ablation(variant: RowNormalization, seed: int = 0) -> PlanOf:
    return lambda case: case.plan(variant, seed)


def _fitted(variant: RowNormalization) -> PlanOf:
    return lambda case: case.fitted(variant)


_NORMS: tuple[tuple[str, RowNormalization], ...] = (("", "none"), (", full", "full"))

CHECKS: dict[str, Callable[[Case], None]] = {
    **{f"edit {name}": partial(hooked_is_edited, plan=_ablation(name)) for name in VARIANTS},
    "fit": partial(hooked_is_edited, plan=_fitted("none")),
    "fit, full": partial(hooked_is_edited, plan=_fitted("full")),
    **{
        f"plans by row{more}": partial(
            rows_have_their_own_plans, own=[_ablation(variant, seed) for seed in range(ROWS)]
        )
        for more, variant in _NORMS
    },
    **{
        f"adapter of a fit{more}": partial(adapters_are_exact, plan=_fitted(variant))
        for more, variant in _NORMS
    },
    "plans by row, mixed": partial(
        rows_have_their_own_plans, own=[_ablation("none"), _ablation("full"), _fitted("none")]
    ),
    "residuals": residuals_are_layer_outputs,
    "replies": replies_are_the_edited_models,
    "save": partial(saved_is_edited, plan_of=_ablation("none"), read=True),
    "save, full": partial(saved_is_edited, plan_of=_ablation("full")),
    "save, fit": partial(saved_is_edited, plan_of=_fitted("none")),
}
"""Name in the table to check."""


@dataclass(frozen=True)
class Result:
    """Of one type.

    Attributes:
        reason: Why it is not supported; empty where it is.
        failures: Check to what went wrong.
    """

    model_type: str
    class_name: str = ""
    path: str = ""
    components: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reason: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether everything holds."""
        return not self.reason and not self.failures


def result_of(model_type: str) -> Result:
    """Ask one type everything."""
    if model_type in NOT_BUILT:
        return Result(model_type, reason=f"not tried: {NOT_BUILT[model_type]}")
    try:
        case = Case.of(model_type)
    except UnsupportedModelError as error:
        return Result(model_type, reason=error.message)
    # Whether there is a cache says how a text is read. It is not a further input.
    if set(case.inputs) - {"use_cache"} != {"input_ids"}:
        others = ", ".join(sorted(set(case.inputs) - {"input_ids"})) or "no token ids"
        return Result(model_type, reason=f"does not run on text alone: it takes {others}")
    failures = {}
    for name, check in CHECKS.items():
        try:
            check(case)
        except Exception as error:  # whatever it is, it belongs into the table
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return Result(
        model_type,
        type(case.model).__name__,
        case.structure.path,
        components_of(case.structure),
        failures=failures,
    )


def components_of(structure: Structure) -> dict[str, list[str]]:
    """Component to the paths of its writers within layers; `[]` marks experts."""
    found: dict[str, dict[str, None]] = {}
    for writer in structure.writers:
        path = writer.name.removeprefix(f"{structure.path}.{writer.layer}.")
        if writer.expert is not None:
            path = f"{path.rpartition('.')[0]}[]"
        found.setdefault(writer.component, {})[path + ("*" if writer.gains is not None else "")] = (
            None
        )
    return {component: list(paths) for component, paths in found.items()}


# --- docs/models.md ------------------------------------------------------------------------

HERE = Path(__file__).resolve().parents[2]
PAGE = HERE / "docs" / "models.md"

INTRO = """# Models

Generated by `make models`: what became of every model type that transformers {transformers} maps to
a language model (causal, or text from images and text), each as a tiny random model of that type.
**{passing} of {total} pass** ({share:.1%}). To ask about a model of yours, without loading its
weights: `heretic inspect MODEL`.

A type passes if, in float32 on a CPU:

- each decoder layer's output is explained by the modules listed here (see below);
- the model edited while running puts out the logits of the model with edited weights, for `none`,
  `pre` and `full`, and for the vectors of a fit, with row norms kept and not; and afterwards, the
  original's again bit for bit;
- the vectors of a fit as an adapter of their rank, merged, are the edited weights (LoRA, or DoRA
  where row norms are kept; not for experts, which no adapter can hold);
- rows of one batch under different plans put out what each plan does alone, `none`, `full` and a
  fit in one batch included;
- captured residuals are the layers' outputs;
- greedy replies agree between both ways of editing;
- saved and read again, the edited model is still the edited model: written from memory, and by
  streaming the base's files where that is possible.

Nothing here says how well a *real* model of that type takes the edit; it says that the edit which
was searched is the edit that is saved.

## How writers are found

Names of modules that are known to write the residual stream are a table of data,
`heretic/architectures/table.py`. When a model is loaded, one forward pass checks them: what a layer
puts out must be the sum of the stream that came in and of what its writers put out, each times a
number that may differ by token (the gate of a shared expert, a residual multiplier) or by channel
(a layer scale). Where the names do not add up, every linear map in the layer is a candidate, and
least squares tells which take part. What stays unexplained is an error that lists the modules; the
setting `residual_writers` names them by hand.

- **Norms after a writer** (marked `*`: Gemma 2 to 4, OLMo 2, GLM 4): what enters the stream is
  g * norm(W x), g being the norm's gains. The direction is taken out of the rows of g * W, so the
  result is exact up to the one number per token by which the norm rescales.
- **Experts** (marked `[]`) are stacked in one parameter. Under `none`, one projection of their
  routed sum is the edit of each, biases included; under `pre` and `full` each expert is edited by
  its own row norms before the sum. An export writes every expert. Routers are left alone.
- **State space, linear attention and convolution mixers** write by an output projection of their
  own, `mixer.out_proj`. RWKV's channel mix has a gate after its writer, Inkling and Qwen 4's n-gram
  embeddings a convolution over time: the edit acts before them.
- **Experts that hand on their input** (LongCat) are left alone: only the others are edited.
- **Several streams** (hyper-connections: DeepSeek V4, Hy 4, GLM 5 Next, Qwen 4; AltUp: Gemma 3n):
  each stream that a layer puts out must be the sum of all that came in and of the writers, by
  numbers that may differ by token and stream; a direction taken out of a writer then enters none of
  them. Directions are those of the streams' mean, or of AltUp's active stream
  ([why](how-it-works.md#directions)).
- **Multimodal models**: the text decoder is edited, the vision tower is not.
- **Post-norm models** (BERT and its kin): the stream itself is normed after each sum; the edit
  acts on what is added.

Where padding changes what a model puts out, which is tried when it is loaded, prompts are run one
at a time. Layers with a state space, linear attention, a convolution or a sliding window share
batches like others (Qwen3-Next, Qwen3.5, Granite 4, Falcon-H1, LFM2, Jamba, Mamba, Nemotron-H,
Gemma 2 to 4, gpt-oss, ...). Plans of models whose forward does not take ready-made masks or
transformers' cache are evaluated one by one, which is slower; Heretic tries it, and says so when it
starts.
"""


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    passing = [result for result in results if result.passes]
    others = [result for result in results if not result.passes]
    intro = INTRO.format(
        transformers=version("transformers"),
        passing=len(passing),
        total=len(results),
        share=len(passing) / len(results),
    )
    quantised = (Path(__file__).parent / "quantised.md").read_text(encoding="utf-8")
    parts = [intro, quantised, "## What passes", "", _HEADER, *map(row, passing), ""]
    parts += ["## What does not", "", "| type | reason |", "| --- | --- |", *map(row, others)]
    return "\n".join(parts) + "\n"


_HEADER = f"""| type | class | layers | {" | ".join(COMPONENTS)} |
| --- | --- | --- | {" | ".join("---" for _ in COMPONENTS)} |"""


def row(result: Result) -> str:
    """A type's line in one of the tables."""
    if result.passes:
        found = [
            "<br>".join(f"`{path}`" for path in result.components.get(name, ()))
            for name in COMPONENTS
        ]
        cells = [f"`{result.model_type}`", result.class_name, f"`{result.path}`", *found]
    else:
        failed = "; ".join(f"{name}: {text}" for name, text in result.failures.items())
        cells = [f"`{result.model_type}`", " ".join((result.reason or failed).split())]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Ask all types, or those named on the command line."""
    arguments = sys.argv[1:]
    named = [argument for argument in arguments if not argument.startswith("--")]
    results = []
    for model_type in named or MODEL_TYPES:
        results.append(result_of(model_type))
        print(row(results[-1]), flush=True)
    if "--write" in arguments and not named:
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
