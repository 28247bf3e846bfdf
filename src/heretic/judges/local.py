"""Judges that run on this machine: sequence classifiers, and guard models that write their verdict.

Weights are loaded when the first reply is judged, and stay in main memory. A judge is on another
device only while it judges, so that the memory planned for the searched model stays free. Code that
comes with a model is never run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Protocol, Self

import torch
from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from transformers import AutoModelForSequenceClassification

from heretic.config.declaration import FromHome
from heretic.errors import ModelError, ScorerError, SettingsError
from heretic.judges.records import Item, Verdict
from heretic.model.completeness import read_weights
from heretic.model.failures import model_errors
from heretic.model.files import check_files, reading
from heretic.model.loading import (
    auto_class,
    configuration,
    load_tokenizer,
    quiet,
    resolve_dtype,
)
from heretic.model.source import ModelSource
from heretic.model.templates import clock_at
from heretic.system import machine
from heretic.system.memory import halving

_log = logging.getLogger(__name__)

_FIELD = re.compile(r"\{(prompt|reply)\}")
# Placeholders for the texts in a chat template; letters alone, which no template changes.
_MARKS = {"prompt": "HereticPromptStandsHere", "reply": "HereticReplyStandsHere"}
GUARDS_DATE = datetime(2025, 1, 1)
"""The date that guards' templates are told: equal replies get equal verdicts on every day."""

_OTHER = "other"
"""Label of a reply to which no label applies."""

EncodedItem = dict[str, list[int]]
"""Token ids of one input, and the other lists that the tokenizer returns (attention mask, ...)."""


class ClassifierOptions(BaseModel):
    """Options of a classifier or guard model: which model, its input, and the labels that count."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    model: Annotated[str, FromHome] = Field(min_length=1, description="Hub id, or folder.")
    commit: str | None = Field(default=None, description="Revision on the Hub.")
    counts: tuple[str, ...] = Field(
        min_length=1, description="Labels that count: the score is the share of replies with them."
    )
    device: str = Field(default="cpu", description="Device on which it judges: cpu, cuda:1, ...")
    dtype: str = Field(default="auto", description="Dtype, as in the setting dtypes.")
    batch_size: int = Field(
        default=8, ge=1, description="Replies judged at once; halved when memory runs out."
    )
    max_length: int = Field(
        default=512,
        ge=1,
        description="Longest input in tokens; for a guard, longest prompt and longest reply.",
    )
    template: str | tuple[str, str] | None = Field(
        default=None,
        description="Input with {prompt} and {reply}, or a pair of such texts. By default the "
        "reply; for a guard, its chat template.",
    )
    threshold: float = Field(
        default=0.5,
        gt=0.0,
        lt=1.0,
        description="Classifiers: probability from which a reply counts.",
    )
    labels: tuple[str, ...] = Field(
        default=("safe", "unsafe"), min_length=2, description="Guards: all possible answers."
    )
    answer: str = Field(
        default=r"\w+",
        description="Guards: regular expression that finds the answer in the text; the answer is "
        "its first group, if there is one.",
    )
    max_tokens: int = Field(default=16, ge=1, description="Guards: most tokens that are generated.")

    @field_validator("answer")
    @classmethod
    def _is_expression(cls, answer: str) -> str:
        try:
            re.compile(answer)
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error}") from error
        return answer

    @model_validator(mode="after")
    def _template_reads_the_reply(self) -> Self:
        given = (self.template,) if isinstance(self.template, str) else self.template or ()
        if given and not any("{reply}" in part for part in given):
            raise ValueError("template must contain {reply}")
        return self


class Reader(Protocol):
    """How the input of one kind of model is made, and its output read."""

    def load(self, model: str, **arguments: Any) -> Any:
        """Load the model with the arguments of `from_pretrained`.

        Raises:
            ModelError: Its files lack weights.
        """

    def encode(self, item: Item) -> EncodedItem:
        """Tokens of an input. No text in prompt and reply becomes a control token."""

    def judge(self, model: Any, rows: Sequence[EncodedItem]) -> list[Verdict]:
        """Verdicts on a batch, in order."""


class LocalJudge:
    """A model that judges replies; each part of it is loaded when it is first used."""

    def __init__(
        self, options: ClassifierOptions, name: str, *, allow_pickle: bool = False
    ) -> None:
        """Load nothing yet.

        Args:
            name: The scorer's name, for errors.
            allow_pickle: The setting of that name.
        """
        self._options = options
        self._name = name
        self._allow_pickle = allow_pickle

    def check(self) -> None:
        """Check configuration, tokenizer, template and device without loading weights.

        Raises:
            ScorerError: The model or its device cannot be used, or the options do not fit it.
        """
        with self._errors():
            check_files(self._options.model, self._options.commit, self._allow_pickle)
            self._reader.encode(Item("x", "y"))
            self._dtype()
            torch.empty(1, device=self._options.device)

    def verdicts(
        self,
        items: Sequence[Item],
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Verdict]:
        """One verdict for each item, in order.

        Args:
            on_step: Called with (items judged, all items).

        Raises:
            ScorerError: The model cannot be loaded or run, or an answer is not one of its labels.
        """
        if not items:
            return []
        with self._errors(), self._placed() as model, torch.inference_mode():
            rows = [self._reader.encode(item) for item in items]
            # Batches of rows of similar length need little padding.
            order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
            found: dict[int, Verdict] = {}

            def work(part: slice) -> None:
                batch = order[part]
                verdicts = self._reader.judge(model, [rows[index] for index in batch])
                found.update(zip(batch, verdicts, strict=True))
                on_step(len(found), len(rows))

            halving(len(rows), self._options.batch_size, work, self._tell_batch_size)
        return [found[index] for index in range(len(rows))]

    def _tell_batch_size(self, size: int) -> None:
        _log.info("%s: out of memory, judging %d at once", self._name, size)

    @property
    def _source(self) -> ModelSource:
        """The judge's model and revision."""
        model, commit = self._options.model, self._options.commit
        return ModelSource(model=model, model_commit=commit, trust_remote_code=False)

    def _dtype(self) -> torch.dtype | str:
        return resolve_dtype(self._options.dtype, torch.device(self._options.device))

    @cached_property
    def _reader(self) -> Reader:
        with quiet(), model_errors(self._options.model):
            config = configuration(self._source)
        tokenizer = load_tokenizer(self._source)
        architecture = str((config.architectures or [""])[0])
        if architecture.endswith("ForSequenceClassification"):
            return _Classifier(config, tokenizer, self._options)
        if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
            return _Guard(config, tokenizer, self._options)
        raise ScorerError(
            f"{self._options.model} is neither a sequence classifier nor a generative model: "
            f"{architecture or 'its configuration names no architecture'}."
        )

    @cached_property
    def _model(self) -> Any:
        # Loading must not change the search's random numbers.
        with torch.random.fork_rng(devices=[]), quiet(), model_errors(self._options.model):
            model = self._reader.load(
                self._options.model,
                revision=self._options.commit,
                trust_remote_code=False,
                dtype=self._dtype(),
                **reading(self._allow_pickle),
            )
        return model.eval().requires_grad_(False)

    @contextmanager
    def _placed(self) -> Iterator[Any]:
        """The model on its device, for as long as it judges."""
        model = self._model
        if torch.device(self._options.device).type == "cpu":
            yield model
            return
        try:
            yield model.to(self._options.device)
        finally:
            model.to("cpu")
            machine.free_memory()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Add the scorer's name to errors; errors of torch become errors about the device."""
        where = f"[scorer.{self._name}] "
        try:
            yield
        except (ModelError, SettingsError, ScorerError) as error:
            raise ScorerError(where + error.message, remedy=error.remedy) from error
        except (RuntimeError, AssertionError) as error:
            raise ScorerError(
                f"{where}{self._options.model} cannot be run on {self._options.device}: "
                f"{str(error).strip().partition(chr(10))[0]}",
                remedy="Set another device or dtype.",
            ) from error


class _Classifier:
    """A model with a classification head, for exactly one label or for several at once."""

    def __init__(self, config: Any, tokenizer: Any, options: ClassifierOptions) -> None:
        self._options = options
        self._tokenizer = tokenizer
        tokenizer.padding_side = "right"  # absolute positions count from the left
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        self._exclusive = config.num_labels > 1 and (
            getattr(config, "problem_type", None) != "multi_label_classification"
        )
        unknown = sorted(set(options.counts) - set(self._labels))
        if unknown:
            raise ScorerError(
                f"{options.model} has no label {', '.join(unknown)}.",
                remedy=f"Set counts to one or more of {', '.join(self._labels)}.",
            )
        self._counted = [self._labels.index(label) for label in options.counts]
        template = options.template or "{reply}"
        self._templates = (template,) if isinstance(template, str) else template

    def load(self, model: str, **arguments: Any) -> Any:
        auto = AutoModelForSequenceClassification
        loaded, _ = read_weights(auto, model, model, arguments)
        config = loaded.config.get_text_config()
        if config.pad_token_id is None:  # decoders need it to find the last token
            config.pad_token_id = self._tokenizer.pad_token_id
        return loaded

    def encode(self, item: Item) -> EncodedItem:
        fields = {"prompt": item.prompt, "reply": item.reply}
        texts = [_FIELD.sub(lambda found: fields[found[1]], part) for part in self._templates]
        longest = min(self._options.max_length, self._tokenizer.model_max_length)
        row = self._tokenizer(
            *texts, truncation=True, max_length=longest, split_special_tokens=True
        )
        return dict(row)

    def judge(self, model: Any, rows: Sequence[EncodedItem]) -> list[Verdict]:
        inputs = self._tokenizer.pad(list(rows), padding=True, return_tensors="pt")
        logits = model(**inputs.to(model.device)).logits.float()
        shares = logits.softmax(dim=-1) if self._exclusive else logits.sigmoid()
        return [self._verdict(row) for row in shares.tolist()]

    def _verdict(self, shares: Sequence[float]) -> Verdict:
        """The likeliest of the labels that count if these reach the threshold, else of the others.

        Args:
            shares: Probability of each label; they add up to 1 where exactly one applies.
        """
        counted = [shares[index] for index in self._counted]
        score = min(sum(counted), 1.0) if self._exclusive else max(counted)
        counts = score >= self._options.threshold
        choice = [index for index in range(len(shares)) if (index in self._counted) == counts]
        if not counts and not self._exclusive:
            choice = [index for index in choice if shares[index] >= self._options.threshold]
        label = self._labels[max(choice, key=shares.__getitem__)] if choice else _OTHER
        return Verdict(label, score=score)


class _Guard:
    """A causal language model that writes its verdict, such as Llama Guard."""

    def __init__(self, config: Any, tokenizer: Any, options: ClassifierOptions) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._options = options
        self._labels = {label.casefold(): label for label in options.labels}
        unknown = sorted(set(options.counts) - set(options.labels))
        if unknown:
            raise ScorerError(
                f"counts names {', '.join(unknown)}, which is not in labels.",
                remedy="List in labels all answers that the guard gives.",
            )
        if isinstance(options.template, tuple):
            raise ScorerError(
                f"{options.model} is a generative model, which takes one text, not a pair.",
                remedy="Give template as one text with {prompt} and {reply}.",
            )
        self._pieces = _FIELD.split(options.template or self._from_chat_template())
        self._adds_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]

    def load(self, model: str, **arguments: Any) -> Any:
        loaded, _ = read_weights(auto_class(self._config), model, model, arguments)
        return loaded

    def encode(self, item: Item) -> EncodedItem:
        # `_FIELD.split` alternates between text and field names.
        fields = {"prompt": item.prompt.strip(), "reply": item.reply.strip()}
        ids: list[int] = []
        for index, piece in enumerate(self._pieces):
            if index % 2:
                ids += self._ids(fields[piece], split=True)[: self._options.max_length]
            else:
                ids += self._ids(piece, split=False)
        bos = self._tokenizer.bos_token_id
        return {"input_ids": [bos, *ids] if self._adds_bos and ids[:1] != [bos] else ids}

    def _ids(self, text: str, *, split: bool) -> list[int]:
        """Token ids; with `split`, what looks like a control token is plain text."""
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=split)
        return list(found["input_ids"])

    def judge(self, model: Any, rows: Sequence[EncodedItem]) -> list[Verdict]:
        inputs = self._tokenizer.pad(list(rows), padding=True, return_tensors="pt")
        written = model.generate(
            **inputs.to(model.device),
            max_new_tokens=self._options.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        new = written[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return [self._verdict(text) for text in texts]

    def _verdict(self, text: str) -> Verdict:
        found = re.search(self._options.answer, text)
        word = (found[1] if found.re.groups else found[0]) or "" if found else ""
        label = self._labels.get(word.strip().casefold())
        if label is None:
            raise ScorerError(
                f"{self._options.model} answered {text.strip()[:60]!r}, which is none of "
                f"{', '.join(self._options.labels)}.",
                remedy="Set labels, answer, template or max_tokens to fit the guard.",
            )
        return Verdict(label, reason=text.strip())

    def _from_chat_template(self) -> str:
        """The conversation as the guard's chat template writes it, with {prompt} and {reply}."""
        if not self._tokenizer.chat_template:
            raise ScorerError(
                f"{self._options.model} has no chat template.",
                remedy="Set template: the text it reads, with {prompt} and {reply}.",
            )
        turns = {"user": _MARKS["prompt"], "assistant": _MARKS["reply"]}
        plain: list[dict[str, Any]] = [{"role": r, "content": text} for r, text in turns.items()]
        listed: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in turns.items()
        ]
        for messages in (plain, listed):
            try:
                with clock_at(GUARDS_DATE):
                    text = self._tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True
                    )
            except (TemplateError, TypeError, ValueError):
                continue
            if all(text.count(mark) == 1 for mark in _MARKS.values()):
                return self._with_fields(text)
        raise ScorerError(
            f"The chat template of {self._options.model} does not take a prompt and a reply.",
            remedy="Set template: the text it reads, with {prompt} and {reply}.",
        )

    def _with_fields(self, text: str) -> str:
        for name, mark in _MARKS.items():
            text = text.replace(mark, f"{{{name}}}")
        return text
