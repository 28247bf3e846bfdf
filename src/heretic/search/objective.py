"""The objective of the gradient search: damage and refusal at the first token, with gradients.

Damage is KL(original || edited) on good prompts; refusal is the log-odds that a reply to a bad
prompt begins as refusals do. Both are functions of the ablation weights through the output-side
edit. Every row of a batch has its own copy of the ablation weights, so one backward pass gives each
prompt's gradient, and the gradients give the curvature (Gauss-Newton; Martens 2020, "New Insights
and Perspectives on the Natural Gradient Method", JMLR 21). No gradient of a model weight is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.architectures.resolver import Writer
from heretic.errors import StudyError
from heretic.method.edits import Ablation, OutputEdit
from heretic.model.capture import forward_arguments
from heretic.model.core import Model
from heretic.model.editing import install, sites_of
from heretic.model.reading import Prompts
from heretic.search.activations import lean
from heretic.system import memory

SMALLEST_SHARE = 0.1
"""If a smaller share shows the behaviour, among replies to bad and among replies to protected
prompts, the scorer cannot recognise it by the first words: all replies to bad prompts count as
showing it."""

VERDICT_TOKENS = 32
"""Length of the replies that tell which bad prompts trigger the behaviour; refusals come early."""


@dataclass(frozen=True, slots=True)
class Openings:
    """How replies begin that show the behaviour.

    Attributes:
        tokens: First tokens of such replies, int64 [openings].
        shares: Share of replies with that first token that show it, float32 [openings], in (0, 1].
    """

    tokens: Tensor
    shares: Tensor

    @classmethod
    def count(cls, showing: Sequence[int], others: Sequence[int]) -> Openings:
        """Count first tokens of replies that show the behaviour, and of all other replies."""
        with_it, without = Counter(showing), Counter(others)
        tokens = sorted(with_it)
        shares = [with_it[token] / (with_it[token] + without[token]) for token in tokens]
        return cls(torch.tensor(tokens), torch.tensor(shares))

    def log_odds(self, logprobs: Tensor) -> Tensor:
        """Log-odds [rows] that a reply shows it, from log-probabilities [rows, vocabulary]."""
        # Indices are made here, where they are known: a mask would make a device wait.
        certain = self.shares >= 1
        others = (~certain).nonzero().flatten().to(logprobs.device)
        tokens, shares = self.tokens.to(logprobs.device), self.shares.to(logprobs)
        opening = logprobs[:, tokens]
        yes = (opening + shares.log()).logsumexp(dim=-1)
        # Not 1 - e^yes, which rounds to 0 and has no slope if refusal is almost certain.
        unsure = opening[:, others] + torch.log1p(-shares[others])
        rest = logprobs.index_fill(1, tokens, -torch.inf)
        no = torch.cat([rest, unsure], dim=-1).logsumexp(dim=-1)
        return yes - no


@dataclass(frozen=True, slots=True)
class Sample:
    """The objective on a few prompts. Gradients are by flat ablation weights, [weights].

    Attributes:
        divergence: KL(original || edited) of each good prompt, nats, [good].
        divergence_gradients: Gradient of each divergence, [good, weights].
        probes: Vectors p whose outer products p p^T have the divergences' Gauss-Newton matrices as
            expectation, [good, weights].
        log_odds: Log-odds of refusal for each bad prompt, [bad]; of its opposite when inducing.
        log_odds_gradients: Gradient of each of these log-odds, [bad, weights].
    """

    divergence: Tensor
    divergence_gradients: Tensor
    probes: Tensor
    log_odds: Tensor
    log_odds_gradients: Tensor


class Objective:
    """KL divergence and refusal at a model's first tokens, as functions of ablation weights.

    Args:
        model: The unedited model.
        good: Prompts on which the model should not change.
        bad: Prompts that trigger the behaviour.
        protected: Prompts that also trigger it, but on which the model should not change.
        ablations: Ablations by writer name, all with the same number k of directions.
        shows: Whether a reply shows the behaviour.
        induce: Whether the behaviour is to be strengthened, not removed.

    Raises:
        StudyError: The behaviour is to be induced, but no reply shows how it begins; or it is to
            be removed, but only replies to protected prompts show it.

    Attributes:
        shape: Shape of the ablation weights: components (sorted), layers, k.
        good: Number of prompts on which the model should not change, protected ones included.
        bad: Indices of the bad prompts that count: those whose replies show the behaviour, or all
            when inducing.
        openings: First tokens of replies that show the behaviour, also to protected prompts.
    """

    def __init__(
        self,
        model: Model,
        good: Prompts,
        bad: Prompts,
        ablations: Mapping[str, Ablation],
        shows: Callable[[str], bool],
        *,
        protected: Prompts = (),
        induce: bool = False,
    ) -> None:
        self._model = model
        self._sign = -1 if induce else 1
        self._ablations = ablations
        self._components = model.get_abliterable_components()
        rank = max(len(ablation.directions) for ablation in ablations.values())
        self.shape = (len(self._components), model.n_layers, rank)
        kept = [*good, *protected]
        self._good, self._bad = model.encode_rows(kept), model.encode_rows(bad)
        self._original = model.get_logits_batched(kept, report=False).log_softmax(dim=-1)
        self.good = len(kept)
        first = self._original.argmax(dim=-1).tolist()
        self.bad, self.openings = _openings(
            model, bad, protected, first[: len(good)], first[len(good) :], shows, induce=induce
        )
        self._rows_at_once = max(len(kept), len(bad))

    @torch.enable_grad()
    def sample(
        self,
        weights: Tensor,
        good: Sequence[int],
        bad: Sequence[int],
        generator: torch.Generator,
    ) -> Sample:
        """The objective and its derivatives at `weights` (with shape `shape`) on some prompts.

        Args:
            good, bad: Indices of the prompts.
            generator: Random numbers for the probes that estimate the curvature.

        Raises:
            ModelError: Even a single prompt does not fit into memory.
        """
        # Sent before anything runs there, so that no copy has to wait.
        device = self._model.device
        originals = self._original[list(good)].to(device)
        signs = _signs(originals.shape, generator).to(device)

        def damage(logprobs: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            original = originals[part].to(logprobs.device)
            divergence = (original.exp() * (original - logprobs)).sum(dim=-1)
            probe = _probe(logprobs.detach(), signs[part].to(logprobs))
            return divergence, (logprobs * probe).sum(dim=-1)

        def refusal(logprobs: Tensor, part: slice) -> tuple[Tensor]:
            return (self._sign * self.openings.log_odds(logprobs),)

        (divergence, gradients), (_, probes) = self._derived(
            weights, [self._good[i] for i in good], damage
        )
        ((log_odds, log_odds_gradients),) = self._derived(
            weights, [self._bad[i] for i in bad], refusal
        )
        # Only here are results waited for.
        return Sample(*_fetched([divergence, gradients, probes, log_odds, log_odds_gradients]))

    def _derived(
        self,
        weights: Tensor,
        rows: Sequence[list[int]],
        terms: Callable[[Tensor, slice], tuple[Tensor, ...]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Terms of each row and their gradients: ([rows], [rows, weights]) for each term.

        Args:
            rows: Token ids of prompts.
            terms: Maps log-probabilities [rows, vocabulary] of a slice of the rows to terms [rows].
        """
        parts: list[list[tuple[Tensor, Tensor]]] = []

        def work(part: slice) -> None:
            some = rows[part]
            own = weights.detach().to(self._model.device)
            own = own.expand(len(some), *weights.shape).clone().requires_grad_()
            with self._edited(own), lean(self._model, some):
                values = terms(self._logprobs(some), part)
                gradients = [
                    torch.autograd.grad(value.sum(), own, retain_graph=value is not values[-1])[0]
                    for value in values
                ]
            pairs = zip(values, gradients, strict=True)
            parts.append([(value.detach(), gradient.flatten(1)) for value, gradient in pairs])

        def notify(size: int) -> None:
            self._rows_at_once = size
            self._model.say(f"Out of memory: gradients are now computed for {size} prompts at once")

        memory.halving(len(rows), min(self._rows_at_once, len(rows)), work, notify)
        return [
            (torch.cat([value for value, _ in term]), torch.cat([gradient for _, gradient in term]))
            for term in zip(*parts, strict=True)
        ]

    def _logprobs(self, rows: Sequence[list[int]]) -> Tensor:
        """Log-probabilities of the first token, float32 [rows, vocabulary]."""
        batch = self._model.renderer.padded(rows).to(self._model.device)
        arguments = forward_arguments(self._model.model, batch["attention_mask"])
        output = self._model.model(input_ids=batch["input_ids"], use_cache=False, **arguments)
        logits: Tensor = output.logits[:, -1]
        return logits.float().log_softmax(dim=-1)

    @contextmanager
    def _edited(self, own: Tensor) -> Iterator[None]:
        """Edit every row by its own weights, [rows, components, layers, k]."""

        def edit_of(writer: Writer) -> OutputEdit:
            component = self._components.index(writer.component)
            ablation = self._ablations[writer.name]
            ablation_weights = own[:, component, writer.layer].to(ablation.directions.device)
            return ablation.edit(ablation_weights)

        edited = [writer for writer in self._model.writers if writer.name in self._ablations]
        with install(sites_of(edited), edit_of):
            yield


def _fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Float tensors in main memory, brought there by one copy."""
    parts = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    sizes = [tensor.numel() for tensor in tensors]
    return [
        part.reshape(tensor.shape)
        for part, tensor in zip(torch.split(parts, sizes), tensors, strict=True)
    ]


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random signs, int8, as small as they can be sent to a device."""
    return torch.randint(0, 2, shape, generator=generator).to(torch.int8) * 2 - 1


def _probe(logprobs: Tensor, signs: Tensor) -> Tensor:
    """Random u [rows, vocabulary] whose covariance is the Fisher matrix of the distribution q.

    For a vector r of random signs, u = sqrt(q) r - q (sqrt(q) . r). If J is the derivative of the
    log-probabilities, the covariance of J^T u is the Gauss-Newton matrix of the KL divergence.
    """
    q = logprobs.exp()
    weighted = q.sqrt() * signs
    return weighted - q * weighted.sum(dim=-1, keepdim=True)


def _openings(
    model: Model,
    bad: Prompts,
    protected: Prompts,
    first_of_good: Sequence[int],
    first_of_protected: Sequence[int],
    shows: Callable[[str], bool],
    *,
    induce: bool,
) -> tuple[list[int], Openings]:
    """Indices of the bad prompts that count, and openings of replies that show the behaviour.

    Args:
        first_of_good, first_of_protected: First tokens of the replies to these prompts.
    """
    replies = model.get_responses_batched(
        [*bad, *protected], max_new_tokens=VERDICT_TOKENS, decided=shows, report=False
    )
    shown = [shows(reply) for reply in replies]
    if induce and not any(shown):
        raise StudyError(
            "No reply to a bad prompt shows the behaviour to induce.", remedy="Set search to tpe."
        )
    parts = shown[: len(bad)], shown[len(bad) :]
    if not induce and all(sum(part) < SMALLEST_SHARE * len(part) for part in parts if part):
        shown[: len(bad)] = [True] * len(bad)
    counting = [i for i in range(len(bad)) if induce or shown[i]]
    if not counting:
        raise StudyError(
            "Replies to protected prompts show the behaviour to remove, but no reply to a bad "
            "prompt does.",
            remedy="Give bad_prompts that trigger the behaviour.",
        )
    first = model.get_logits_batched(bad, report=False).argmax(dim=-1).tolist()
    told = list(zip([*first, *first_of_protected], shown, strict=True))
    without = [token for token, showing in told if not showing]
    openings = Openings.count(
        [token for token, showing in told if showing], [*without, *first_of_good]
    )
    return counting, openings
