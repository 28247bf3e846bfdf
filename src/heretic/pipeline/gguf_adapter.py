"""Make a GGUF file of a saved LoRA adapter, and score it on its base in llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

from heretic.compare.side import open_side
from heretic.events import Reporter, StageFinished, StageStarted, whole_stages
from heretic.export.files import sha256_file
from heretic.export.staging import staged
from heretic.gguf.adapters import check_exact
from heretic.gguf.convert import convert_adapter
from heretic.gguf.documents import write_documents
from heretic.gguf.llama import LlamaFile
from heretic.gguf.results import ADAPTER, Made, Results
from heretic.gguf.score import check_tokens, logits_of, outputs_of, scores_of
from heretic.gguf.staging import converter_copy
from heretic.pipeline.gguf import (
    SHOWN_TOKENS,
    WORK,
    GGUFJob,
    rules_of,
)
from heretic.pipeline.gguf_order import GGUFOrder, check_order
from heretic.pipeline.gguf_source import GGUFSource
from heretic.pipeline.prompts import load_evaluation_prompts
from heretic.pipeline.stages import scores_line
from heretic.prompts import PromptSets
from heretic.scorers import Outputs


def make_gguf_adapter(source: GGUFSource, destination: Path, reporter: Reporter) -> Results:
    """Convert an adapter, and score it on its unquantised base.

    Raises:
        ExportError: The adapter would be another edit as a GGUF file; or as `make_gguf`.
        ModelError: Its base is not on this machine.
    """
    check_exact(source.folder)
    base = open_side(str(source.folder)).checkpoint.folder
    trusted = source.settings.trust_remote_code
    order = GGUFOrder((), destination)
    place = check_order(order, base, original=False, trusted=trusted)
    rules, left = rules_of(source.settings)
    prompts = load_evaluation_prompts(source.settings, reporter, rules.scorers)
    with staged(place) as folder, whole_stages(reporter) as told:
        job = _AdapterJob(source, order, rules, folder, told, (*source.not_scored, *left))
        results = job.of_adapter(base, prompts)
        shutil.rmtree(folder / WORK)
        write_documents(folder, source.folder, results)
    return results


class _AdapterJob(GGUFJob):
    """The same work on an adapter: its base is converted, and run with it and without it."""

    def of_adapter(self, base: Path, prompts: PromptSets) -> Results:
        """Convert the adapter and score it."""
        path, _ = self.converted(base, "base")
        file = self.folder / f"{self.name}-{ADAPTER}.gguf"
        trusted = self.source.settings.trust_remote_code
        with (
            converter_copy(base, self.work, trusted=trusted) as of_base,
            converter_copy(self.source.folder, self.work, trusted=trusted) as of_adapter,
        ):
            convert_adapter(of_adapter, of_base, file)
        reference = self.reference(self.source.settings, prompts)
        reference.model.unload()
        self.reporter.emit(StageStarted("Scoring in llama.cpp: the base with the adapter"))
        with LlamaFile(path) as alone:
            check_tokens(alone, reference.sets)
            logits = logits_of(alone, reference.sets, self.rules, self.reporter)
        with LlamaFile(path, adapter=file) as edited:
            outputs = outputs_of(edited, reference.model, reference.sets, self.rules, self.reporter)
            ids = edited.replies(reference.sets["shown"].rows, SHOWN_TOKENS)
        scores = scores_of(outputs, Outputs(logits=logits), self.rules)
        self.reporter.emit(StageFinished(scores_line(scores)))
        made = Made(
            kind=ADAPTER,
            file=file.name,
            size=file.stat().st_size,
            sha256=sha256_file(file),
            importance=False,
            fallbacks={},
            without_importance=(),
            scores=scores,
            rounding=None,
            replies=tuple(reference.model.decode(row) for row in ids),
        )
        conversion = self.check_conversion(reference.logits, outputs)
        return self.results(reference, made, (made,), conversion, base.name)
