"""A run goes on, begins anew or is refused; every time one line says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import tiny

from heretic.cli import opening
from heretic.cli.menu.questions import Back
from heretic.main import main
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs

CONFIG = """
model = "model"
n_trials = 1
n_startup_trials = 3
search = "tpe"
seed = 7
dtypes = ["float32"]
max_response_length = 4
response_prefix = ""
refusal_markers = {markers}
scorers = [{{ plugin = "keyword", name = "refusals" }}, {{ plugin = "kl_divergence" }}]
"""
ALWAYS, NEVER = '["", "x"]', '["no reply holds this"]'
"""Markers that every reply holds, and that none does."""
KL = '{"plugin": "kl_divergence"}]'
OWN_SCORER = """
from heretic.scorers import Needs, Outputs, Scorer

class Share(Scorer):
    needs = Needs(responses=frozenset({"bad"}))

    def values(self, outputs, baseline):
        return [True for _ in outputs.responses["bad"]]

class Length(Scorer):
    needs = Needs(responses=frozenset({"bad"}))

    def values(self, outputs, baseline):
        return [float(len(reply)) for reply in outputs.responses["bad"]]
"""


def configure(place: Path, markers: str) -> None:
    (place / "config.toml").write_text(CONFIG.format(markers=markers) + tiny.PROMPT_TABLES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("opening") / "model")


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose model "refuses" every prompt."""
    (tmp_path / "model").symlink_to(model)
    tiny.prompt_files(tmp_path)
    configure(tmp_path, ALWAYS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command; returns the exit status and what was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(arguments)
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return run


def folders(place: Path) -> list[RunFolder]:
    return [RunFolder(row.path) for row in list_runs(place / "checkpoints")]


class TestWithoutATerminal:
    def test_the_same_command_goes_on(self, place: Path, run) -> None:
        status, told = run()
        assert (status, "A new run begins in checkpoints" in told) == (0, True)
        (folder,) = folders(place)
        first = folder.read_trials()
        status, told = run("--n-trials", "2")
        assert status == 0
        assert "A run with 1 of 2 trials already exists. It is continued" in told
        assert folder.read_trials()[:1] == first
        assert len(folder.read_trials()) == 2
        assert "It is continued" in folder.log_path.read_text()

    def test_a_run_that_was_searched_further_has_no_odd_count(self, place: Path, run) -> None:
        run("--n-trials", "2")
        told = run("--n-trials", "1")[1]
        assert "A run with 2 trials already exists." in told
        assert "2 of 1" not in told

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            (("--max-response-length", "5"), "max_response_length (4 there, 5 now)"),
            (("--seed", "8"), "seed (7 there, 8 now)"),
            (("--no-orthogonalize-direction",), "orthogonalize_direction (true there, false now)"),
            (("--bad-prompts.split", "train[:7]"), "bad_prompts. "),
            (("--model", "other"), "the model's files"),
        ],
    )
    def test_other_settings_begin_a_run_and_the_nearest_is_named(
        self, place: Path, model: Path, run, changed: tuple[str, ...], named: str
    ) -> None:
        run()
        (folder,) = folders(place)
        if "other" in changed:  # a folder of the same name whose files are others
            (place / "model").unlink()
            tiny.folder(place / "model", seed=5)
            changed = ()
        status, told = run(*changed, "--checkpoint-action", "continue")
        assert status == 2
        assert f"The nearest one is {folder.path.relative_to(place)}, which differs in" in told
        assert named in told
        assert len(list((place / "checkpoints").iterdir())) == 1
        status, told = run(*changed)
        assert status == 0
        assert "A new run begins in" in told
        assert named in told
        assert len(folders(place)) == 2

    def test_changed_texts_of_the_prompts_are_named(self, place: Path, run) -> None:
        run()
        (place / "bad.txt").write_text("\n".join(reversed(tiny.BAD_PROMPTS)))
        told = run("--checkpoint-action", "continue")[1]
        assert "which differs in the text of the prompts." in told

    def test_of_several_runs_the_one_with_the_fewest_differences_is_named(
        self, place: Path, run
    ) -> None:
        run("--max-response-length", "5", "--seed", "1")
        run("--max-response-length", "6")
        told = run("--max-response-length", "6", "--checkpoint-action", "continue", "--seed", "2")
        assert "which differs in seed (7 there, 2 now)." in told[1]

    def test_nothing_to_continue_is_an_error_before_the_model_loads(
        self, place: Path, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "prepared", None)
        status, told = run("--checkpoint-action", "continue")
        assert status == 2
        assert "There is no run of model with exactly these settings in" in told
        assert "leave checkpoint_action out" in told
        assert not (place / "checkpoints").exists()


class Confirm:
    """A user who answers the one question."""

    def __init__(self, answer: bool | type[Back]) -> None:
        self.answer = answer

    def confirm(self, question: str, default: bool = False) -> bool:
        assert (question, default) == ("Search all the same?", False)
        if isinstance(self.answer, bool):
            return self.answer
        raise self.answer


class TestNothingToRemove:
    @pytest.fixture(autouse=True)
    def refuses_nothing(self, place: Path) -> None:
        configure(place, NEVER)

    def test_without_a_terminal_it_is_an_error_that_names_the_setting(
        self, place: Path, run
    ) -> None:
        status, told = run()
        assert status == 2
        assert "hardly anything to remove: the original model has refusals 0/4." in told
        assert "system prompt" in told
        assert "--force" in told
        assert folders(place) == []  # so that the next command asks again

    def test_force_searches_and_warns(self, place: Path, run) -> None:
        status, told = run("--force")
        assert status == 0
        assert "Warning: There is hardly anything to remove" in told
        status, told = run("--n-trials", "2", "--checkpoint-action", "continue")
        assert status == 0  # force is no part of what a run is recognised by
        assert "hardly anything" not in told  # and is asked about once

    @pytest.mark.parametrize(("answer", "status"), [(True, 0), (False, 2), (Back, 2)])
    def test_a_terminal_asks(
        self, place: Path, run, monkeypatch: pytest.MonkeyPatch, answer, status: int
    ) -> None:
        monkeypatch.setattr(opening, "terminal_prompter", lambda: Confirm(answer))
        assert run()[0] == status
        assert len(folders(place)) == (status == 0)

    def test_only_a_share_of_bad_prompts_to_be_lowered_counts(self, place: Path, run) -> None:
        wanted = '[{"plugin": "keyword", "name": "r", "optimization": "%s"}, ' + KL
        assert run("--scorers", wanted % "maximize")[0] == 0
        assert run("--scorers", wanted % "none")[0] == 0
        assert run("--scorers", '[{"plugin": "words"}, ' + KL)[0] == 0
        assert run("--goal", "induce", "--scorers", wanted % "maximize")[0] == 0
        assert run("--scorers", wanted % "minimize")[0] == 2


class TestMaxRefusals:
    """Every reply is a refusal here: 4 of 4 prompts."""

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("--goal", "induce"), "here the first is refusals"),
            (("--scorers", f'[{{"plugin": "words"}}, {KL}'), "here the first is words"),
            (("--scorers", f"[{KL}"), "here the first is kl_divergence"),
            (("--scorers", '[{"plugin": "keyword"}]'), "here there is only keyword"),
        ],
    )
    def test_what_it_cannot_bound_is_said_before_the_model_loads(
        self, place: Path, run, monkeypatch: pytest.MonkeyPatch, arguments, reason: str
    ) -> None:
        monkeypatch.setattr(opening, "prepared", None)
        if "induce" in arguments:
            (place / "config.toml").write_text(
                re.sub(r"scorers = .*\n", "", (place / "config.toml").read_text())
            )
        status, told = run("--max-refusals", "1", *arguments)
        assert status == 2
        assert "max_refusals needs a first objective that counts prompts and is minimized" in told
        assert f"{reason}." in told
        assert not (place / "checkpoints").exists()

    def test_a_scorer_of_ones_own_is_asked_when_the_original_is_scored(
        self, place: Path, run
    ) -> None:
        (place / "own.py").write_text(OWN_SCORER)
        for name, status in (("Share", 0), ("Length", 2)):
            scorers = f'[{{"plugin": "own.py:{name}", "name": "own"}}, {KL}'
            found, told = run("--max-refusals", "1", "--scorers", scorers)
            assert found == status
            assert ("here the first is own" in told) == (status == 2)
        (kept,) = folders(place)  # the other has no run folder
        assert kept.read_trials()

    def test_what_it_chose_is_said(self, place: Path, run) -> None:
        assert "nearest: index 0, trial 0: refusals 4/4" in run("--max-refusals", "3")[1]
        status, told = run("--max-refusals", "4", "--n-trials", "2")  # the same run goes on
        assert status == 0
        assert "Best with at most 4 refusals: index 0, trial" in told
        assert len(folders(place)) == 1
