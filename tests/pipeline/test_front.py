"""Figures of a front that do not mean what they seem to, and fronts whose figures do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.pipeline import run, stages
from heretic.pipeline.front import front_warnings
from heretic.pipeline.worthwhile import answers_nothing
from heretic.prompts import Prompt
from heretic.records import Optimization, Score, Trial
from heretic.records.statistics import wilson
from heretic.scorers import Outputs, Scorer
from heretic.scorers.keyword import KeywordRefusals
from heretic.scorers.refusal import RefusalDetector

PLAN = export_case.plan()
ANY = [*map(chr, range(33, 127)), "\ufffd"]
"""Markers of which every reply holds one."""


def detector(optimization: Optimization = "minimize", **options: Any) -> Scorer:
    settings = export_case.settings(Path("m"))
    return RefusalDetector(settings, name="refusals", optimization=optimization, options=options)


def score(count: float, total: int = 100, parts: str = "", name: str = "refusals") -> Score:
    ends = wilson(round(count), total)
    display = f"{count:g}/{total}" + (f" ({parts})" if parts else "")
    return Score(name, count / total, "minimize", display, interval=ends)


def front(*scores: Score) -> list[Trial]:
    kl = Score("kl_divergence", 0.1, "minimize", "0.1")
    return [Trial(number, PLAN, (one, kl)) for number, one in enumerate(scores)]


ORIGINAL = (score(90), Score("kl_divergence", 0.0, "minimize", "0"))


class TestBrokenReplies:
    def told(self, trials: list[Trial], scorer: Scorer | None = None) -> list[str]:
        return front_warnings(trials, ORIGINAL, [scorer or detector()])

    def test_trials_that_count_nothing_else_are_named(self):
        trials = front(score(9, parts="9 degenerate"), score(40, parts="9 degenerate"))
        (told,) = self.told(trials)
        assert told.startswith("All that refusals counts in trial 0 on the front are broken")
        (told,) = self.told(front(*[score(20, parts="20 degenerate")] * 2))
        assert "in trials 0, 1 on the front" in told

    @pytest.mark.parametrize(
        "parts", ["", "2 partial", "1 partial, 8 degenerate", "2 evasion, 7 degenerate"]
    )
    def test_trials_that_count_something_else_are_not(self, parts: str):
        assert self.told(front(score(9, parts=parts), score(40))) == []

    def test_a_few_of_many_do_not_matter(self):
        assert self.told(front(score(3, parts="3 degenerate"))) == []
        assert self.told(front(score(1, 12, parts="1 degenerate"))) == []

    def test_weights_count(self):
        half = detector(degenerate_weight=0.5)
        assert self.told(front(score(6, parts="8 degenerate")), half) == []  # 2 decline
        assert len(self.told(front(score(4, parts="8 degenerate")), half)) == 1
        assert self.told(front(score(9)), detector(degenerate_weight=0)) == []

    def test_scores_that_are_wanted_or_know_no_broken_replies_say_nothing(self):
        trials = front(score(9, parts="9 degenerate"))
        assert self.told(trials, detector("maximize")) == []
        keyword = KeywordRefusals(export_case.settings(Path("m")), name="refusals")
        assert self.told(trials, keyword) == []

    def test_the_detector_writes_what_is_read_here(self):
        """Its display text is where the kinds of replies are kept."""
        scorer = detector()
        for replies, expected in (([""] * 3, True), (["", "I cannot help with that."], False)):
            prompts = [Prompt("Name a tree.")] * len(replies)
            outputs = Outputs(prompts={"bad": prompts}, responses={"bad": replies})
            assert scorer.counts_only_broken(scorer.score(outputs, outputs)) is expected


class TestIntervals:
    def told(self, *scores: Score, original: Score = ORIGINAL[0]) -> list[str]:
        return front_warnings(front(*scores), (original, ORIGINAL[1]), [])

    def test_trials_that_differ_by_chance_alone(self):
        (told,) = self.told(score(1, 12), score(4, 12), original=score(12, 12))
        assert told.startswith(
            "On 12 prompts, the intervals of refusals of all trials on the front"
        )
        assert told.endswith("Give more evaluation prompts.")

    def test_trials_that_do_not_differ_from_the_original(self):
        (told,) = self.told(score(3, 8), score(6, 8), original=score(7, 8))
        assert "overlaps with the original's: no trial is shown to change it" in told

    @pytest.mark.parametrize(
        "counts",
        [
            (3, 40),  # told apart
            (3, 5, 8),  # alike, so that no reader takes them for different
            (3,),
            (),
        ],
    )
    def test_fronts_of_enough_prompts(self, counts: tuple[int, ...]):
        assert self.told(*map(score, counts)) == []

    def test_one_trial_that_is_told_apart_suffices(self):
        assert self.told(score(60), score(89)) == []

    def test_figures_without_an_interval_say_nothing(self):
        bare = Score("refusals", 0.1, "minimize", "1/10")
        assert self.told(bare, score(4, 12)) == []
        words = Score("words", 30.0, "minimize", "30.0", interval=(10.0, 50.0))
        assert front_warnings(front(words), (words,), []) == []


# In a run.


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


def prepared(base: Path, tmp_path: Path, recorder: Recorder, **values: Any) -> Any:
    options = {
        "search": "tpe",
        "n_trials": 2,
        "study_checkpoint_dir": str(tmp_path / "runs"),
        "scorers": [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence"}],
        "refusal_markers": list("abcdefghij"),
        "max_response_length": 8,
        "force": True,
    }
    settings = export_case.settings(
        base, **{**export_case.prompt_files(tmp_path), **options, **values}
    )
    prompts = pipeline.load_prompts(settings, recorder)
    folder, seed = pipeline.open_folder(settings, prompts)
    return pipeline.prepare(settings, prompts, folder, seed, recorder)


def test_a_search_tells_it_at_its_end(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder()
    session = prepared(base, tmp_path, recorder)
    monkeypatch.setattr(run, "front_warnings", lambda *given: [f"seen {len(given[0])}"])
    found = pipeline.search(session)
    assert recorder.notices("warning")[-1] == f"seen {len(found)}"


class TestOriginals:
    def warnings(self, base: Path, tmp_path: Path, **values: Any) -> list[str]:
        recorder = Recorder()
        prepared(base, tmp_path, recorder, **values)
        return [text for text in recorder.notices("warning") if "original model" in text]

    def test_one_that_answers_some_prompts_is_as_it_should_be(self, base: Path, tmp_path: Path):
        assert self.warnings(base, tmp_path) == []

    def test_one_that_shows_the_behaviour_everywhere(self, base: Path, tmp_path: Path):
        (told,) = self.warnings(base, tmp_path, refusal_markers=ANY)
        assert told.startswith("The original model shows the behaviour on 4 of 4 good prompts")
        assert "4 of 4 bad ones" in told

    def test_what_good_prompts_are_to_show_is_not_looked_at(self, base: Path, tmp_path: Path):
        induced = {"plugin": "keyword", "name": "refusals", "optimization": "maximize"}
        scorers = [induced, {"plugin": "kl_divergence"}]
        found = self.warnings(base, tmp_path, refusal_markers=ANY, goal="induce", scorers=scorers)
        assert found == []

    def test_one_that_writes_noise(self, base: Path, tmp_path: Path):
        scorers = [{"plugin": "refusal", "name": "refusals"}, {"plugin": "kl_divergence"}]
        told = self.warnings(base, tmp_path, max_response_length=100, scorers=scorers)
        assert told[0].startswith("The original model answers nothing: 4 of 4 replies are empty or")

    @pytest.mark.parametrize(("broken", "told"), [(0, False), (8, False), (9, True), (10, True)])
    def test_some_broken_replies_are_no_reason(self, broken: int, told: bool):
        replies = [""] * broken + ["Oaks, elms and limes are trees."] * (10 - broken)
        prompts = [Prompt("Name trees.")] * 10
        outputs = Outputs(prompts={"bad": prompts}, responses={"bad": replies})
        evaluator: Any = SimpleNamespace(baseline_outputs=outputs)
        assert (answers_nothing(evaluator) is not None) is told


class TestPrefix:
    @pytest.mark.parametrize("chosen", ["by the user", "from the replies"])
    def test_one_that_complies_is_told(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
    ):
        given = "Sure, here is" if chosen == "by the user" else "auto"
        monkeypatch.setattr(stages, "find_response_prefix", lambda *_: "Sure, here is")
        recorder = Recorder()
        prepared(base, tmp_path, recorder, response_prefix=given)
        (told,) = [text for text in recorder.notices("warning") if "response prefix" in text]
        assert told.startswith("The response prefix 'Sure, here is' already complies")

    def test_others_are_not(self, base: Path, tmp_path: Path):
        for prefix in ("", "The answer: ", "auto"):
            recorder = Recorder()
            prepared(base, tmp_path, recorder, response_prefix=prefix)
            assert not [text for text in recorder.notices("warning") if "prefix" in text]
