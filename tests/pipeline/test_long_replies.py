"""Chosen trials are scored on longer replies than the search's, and differences are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.cli.workflow import saved_table
from heretic.errors import PromptError, ScorerError
from heretic.events import Notice
from heretic.export.request import LongReplies
from heretic.pipeline import long_replies as module
from heretic.pipeline.long_replies import difference, differing, long_replies
from heretic.records import Score
from heretic.records.trial import Optimization
from heretic.refusals import VERSION
from heretic.scorers.broken import BrokenReplies

ALL = 6
"""Bad evaluation prompts of the session."""

USUAL = module.TOKENS
"""As it is outside tests, whose reports are shorter (tests/conftest.py)."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base", max_position_embeddings=512)


@pytest.fixture
def open_session(tmp_path: Path, base: Path) -> Callable[..., tuple[Any, Recorder]]:
    def give(**values: Any) -> tuple[Any, Recorder]:
        sets = export_case.prompt_files(tmp_path)
        sets["bad_evaluation_prompts"]["split"] = f"train[-{ALL}:]"
        options = {"search": "tpe", "n_trials": 1, "study_checkpoint_dir": str(tmp_path / "runs")}
        options |= {"report_length": 128}
        settings = export_case.settings(base, **{**sets, **options, **values})
        recorder = Recorder()
        prompts = pipeline.load_prompts(settings, recorder)
        folder, seed = pipeline.open_folder(settings, prompts)
        return pipeline.prepare(settings, prompts, folder, seed, recorder), recorder

    return give


OpenSession = Callable[..., tuple[Any, Recorder]]


def test_the_figures_are_in_all_that_is_saved(open_session: OpenSession, tmp_path: Path) -> None:
    session, _ = open_session()
    (trial,) = pipeline.search(session)
    exported = pipeline.export_trial(session, trial, tmp_path / "edited", "merge")
    found = exported.long_replies
    assert found is not None
    assert found.tokens == 128
    shown = {score.name: score for score in found.after}
    assert list(shown) == [
        "refusals",
        "late_refusals",
        "broken_replies",
        "kl_along_replies",
        "greedy_agreement",
        "reply_length",
        "capability",
    ]
    assert len(shown["refusals"].values) == len(shown["late_refusals"].values) == ALL
    good = len(session.prompts.evaluation.good)
    assert len(shown["broken_replies"].values) == ALL + good
    assert len(shown["kl_along_replies"].values) == good
    # The search's own figures stay, and so do its evaluator's.
    assert session.evaluator.evaluate([trial.plan])[0] == trial.scores
    assert [score.display for score in exported.saved] == [s.display for s in trial.scores]
    written = json.loads((tmp_path / "edited" / "abliteration_params.json").read_text())
    assert LongReplies.from_dict(written["scores"]["long_replies"]).tokens == 128
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "replies of up to 128 tokens" in card
    assert shown["broken_replies"].display in card
    # Of the files too, on these few prompts; the weights are in float32, so nothing is rounded.
    saved = {score.name: score for score in found.saved}
    assert list(saved) == ["refusals", "late_refusals", "broken_replies"]
    assert saved["refusals"] == shown["refusals"]
    assert len(saved["broken_replies"].values) == ALL
    assert "The files themselves, loaded again" in card
    console = Console(width=160)
    with console.capture() as printed:
        console.print(saved_table(export_case.BASELINE, trial.scores, exported, tmp_path))
    assert "From disk, on the first of these prompts: refusals" in printed.get()
    assert "replies of up to 128 tokens" in printed.get()
    assert "broken replies" in printed.get()


def test_replies_are_as_long_as_that(open_session: OpenSession) -> None:
    session, _ = open_session()
    (trial,) = pipeline.search(session)
    evaluated: list[int] = []

    class Reader(BrokenReplies):
        def values(self, outputs: Any, baseline: Any) -> list[bool]:
            evaluated.extend(len(reply) for reply in outputs.responses["bad"])
            return super().values(outputs, baseline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BrokenReplies", Reader)
        long_replies(session, trial)
    assert max(evaluated) > 100  # a token is at most a byte here; the search's have 4
    for prompt, response in zip(
        session.prompts.evaluation.bad,
        session.evaluator.baseline_outputs.responses["bad"],
        strict=True,
    ):
        assert len(response) <= 4, prompt


def test_the_next_save_reads_them_from_the_run_folder(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = open_session()
    (trial,) = pipeline.search(session)
    found = long_replies(session, trial)
    fewer = long_replies(session, trial, most=3)
    assert fewer is not None
    assert len(fewer.after[0].values) == 3
    monkeypatch.setattr(module, "_measured", None)
    assert long_replies(session, trial) == found
    assert long_replies(session, trial, most=3) == fewer


def test_another_detector_reads_them_anew(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"plugin": "keyword", "name": "words"}
    session, _ = open_session(scorers=[words, {"plugin": "kl_divergence"}])
    (trial,) = pipeline.search(session)
    found = long_replies(session, trial, most=1)
    assert found is not None
    measured: list[int] = []

    def again(*_: Any) -> LongReplies:
        measured.append(1)
        return found

    monkeypatch.setattr(module, "_measured", again)
    long_replies(session, trial, most=1)
    assert not measured
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    long_replies(session, trial, most=1)
    assert measured


def test_longer_settings_stay(open_session: OpenSession) -> None:
    session, _ = open_session(max_response_length=140)
    (trial,) = pipeline.search(session)
    found = long_replies(session, trial, most=2)
    assert found is not None
    assert found.tokens == 140


THINKING = (
    "{% for message in messages %}{{ message.content }} {% endfor %}"
    "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)


@pytest.mark.parametrize(("template", "tokens"), [("{{ messages }}", 256), (THINKING, 512)])
def test_unset_it_suits_the_model(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, template: str, tokens: int
) -> None:
    session, _ = open_session(report_length=None)
    (trial,) = pipeline.search(session)
    monkeypatch.setattr(module, "TOKENS", USUAL)
    monkeypatch.setattr(session.model.renderer, "template", template)
    monkeypatch.setattr(type(session.model.limits), "positions", None, raising=False)
    found = long_replies(session, trial, most=1)
    assert found is not None
    assert found.tokens == tokens


def test_replies_keep_within_the_models_positions(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = open_session()
    prompts = session.prompts.evaluation.bad
    longest = max(map(len, session.model.encode_rows(prompts)))
    for positions, tokens in ((longest + 50, 50), (longest + 2, 4)):
        limits = type(session.model.limits)
        monkeypatch.setattr(limits, "positions", positions, raising=False)
        readers = [one for one in session.evaluator.scorers if one.needs.responses]
        evaluation = session.prompts.evaluation
        assert module.length_of(session.evaluator, evaluation, readers) == tokens


def test_a_model_that_cannot_read_the_items_has_the_other_figures(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, recorder = open_session(report_length=8)
    (trial,) = pipeline.search(session)

    def refuse(*_: Any) -> None:
        raise PromptError("An item is longer than the model's positions.")

    monkeypatch.setattr("heretic.prompts.load", refuse)
    found = long_replies(session, trial, most=2)
    assert found is not None
    assert "capability" not in [score.name for score in found.after]
    said = "Capability was not measured: An item is longer than the model's positions."
    assert said in recorder.notices("warning")


def test_who_measures_capability_already_has_it_once(open_session: OpenSession) -> None:
    own = {"plugin": "capability", "name": "knows"}
    few = {"knows": {"items": module.CAPABILITY["items"].model_dump()}}
    session, _ = open_session(
        scorers=[{"plugin": "refusal", "name": "refusals"}, own], scorer=few, report_length=8
    )
    (trial,) = pipeline.search(session)
    found = long_replies(session, trial, most=2)
    assert found is not None
    assert not {"capability", "knows"} & {score.name for score in found.after}


def test_models_that_reason_are_scored_with_their_reasoning_too(
    open_session: OpenSession, base: Path, tmp_path: Path
) -> None:
    own = tmp_path / "Tiny-Reasoning"
    shutil.copytree(base, own)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(own)
    session, _ = open_session(model=str(own), report_length=8)
    (trial,) = pipeline.search(session)
    found = long_replies(session, trial, most=2)
    assert found is not None
    shown = {score.name: score.display for score in found.after}
    assert shown["unclosed_reasoning_thinking"] == "2/2"  # it writes noise, and closes nothing
    assert {"refusals_thinking", "refusals_in_reasoning_thinking"} <= set(shown)
    assert session.model.prompt_text("Hi").endswith("</think>")  # as it was before
    assert session.evaluator.evaluate([trial.plan])[0] == trial.scores


def test_without_scorers_of_replies_nothing_is_said(open_session: OpenSession) -> None:
    session, recorder = open_session(scorers=[{"plugin": "kl_divergence"}])
    (trial,) = pipeline.search(session)
    before = len(recorder.events)
    assert long_replies(session, trial) is None
    assert len(recorder.events) == before


def test_a_scorer_that_fails_does_not_stop_the_save(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, recorder = open_session()
    (trial,) = pipeline.search(session)

    def fail(*args: Any) -> None:
        raise ScorerError("The judge gives no answer.")

    monkeypatch.setattr(module, "_measured", fail)
    assert long_replies(session, trial) is None
    assert "The judge gives no answer" in recorder.of(Notice)[-1].text


def rate(name: str, count: int, total: int = 100) -> Score:
    values = tuple(float(index < count) for index in range(total))
    wanted: Optimization = "none" if name == "broken_replies" else "minimize"
    return Score(name, count / total, wanted, f"{count}/{total}", values=values)


@pytest.mark.parametrize(
    ("refused", "broken", "original", "told"),
    [
        (31, 21, 6, ["refusals is 31/100", "13/100", "21/100 replies are broken", "6/100"]),
        (31, 6, 6, ["refusals is 31/100"]),
        (13, 21, 6, ["21/100 replies are broken"]),
        (14, 8, 6, None),  # as many as rounding or chance explains
        (2, 3, 6, None),  # better than in the search
    ],
)
def test_what_is_worse_is_told(
    refused: int, broken: int, original: int, told: list[str] | None
) -> None:
    found = LongReplies(
        128,
        (rate("refusals", 90), rate("broken_replies", original)),
        (rate("refusals", refused), rate("broken_replies", broken)),
    )
    text = difference(found, (rate("refusals", 13),), 40)
    assert (text is None) == (told is None)
    for part in told or ():
        assert part in str(text)
    if told is not None:
        assert "refusals is" in str(text) or refused <= 14
        assert ("broken" in str(text)) == (broken > 8)


def test_fewer_prompts_are_compared_with_the_same_prompts() -> None:
    """The first ten of the search's prompts hold all of its 13 refusals."""
    found = LongReplies(
        128,
        (rate("refusals", 10, 10), rate("broken_replies", 0, 10)),
        (rate("refusals", 10, 10), rate("broken_replies", 0, 10)),
    )
    assert difference(found, (rate("refusals", 13),), 40) is None


@pytest.mark.parametrize(("saved", "told"), [(12, None), (14, None), (60, "is 60/100"), (0, "0/")])
def test_files_that_differ_beyond_chance_are_told(saved: int, told: str | None) -> None:
    texts = differing((rate("refusals", 12),), (rate("refusals", saved), rate("unknown", 3)))
    assert len(texts) == (told is not None)
    assert all(told is not None and told in text for text in texts)
