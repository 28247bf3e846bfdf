"""The menu after a search: by settings, with a scripted user, and on a pseudo-terminal."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.terminal import (
    CTRL_A,
    CTRL_C,
    CTRL_D,
    CTRL_K,
    DOWN,
    end,
    in_pipe,
    in_terminal,
    written,
)
from tests.support.terminal_program import ARGV, BASELINE, MODEL, trial

from heretic.cli.display.reporter import PlainReporter
from heretic.cli.menu.answers import Answers, way_on, without_options
from heretic.cli.menu.checkpoint import choose_checkpoint
from heretic.cli.menu.details import destination_problem, repository_problem
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.menu import Actions, Menu, front_lines
from heretic.cli.menu.questions import Back, Check, Option
from heretic.config import Settings
from heretic.errors import ExportError, SettingsError, StudyError
from heretic.export.files import check_destination
from heretic.records import Trial, front
from heretic.records.options import options_of

FRONT = front([trial(number) for number in range(4)])  # row 0 is trial 3
ENTER = "\r"


class Script:
    """A user who gives these answers in turn; `Back` leaves the question."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []
        self.offered: Any = None  # the answer that the last choice began at

    def _next(self, question: str) -> Any:
        self.asked.append(question)
        assert self.replies, f"asked once too often: {question}"
        reply = self.replies.pop(0)
        if reply is Back:
            raise Back
        return reply

    def select(self, question: str, options: Sequence[Option], default: Any = None) -> Any:
        self.offered = default
        reply = self._next(question)
        assert reply in [option.value for option in options], (question, reply, options)
        return reply

    def checkbox(self, question: str, options: Sequence[Option]) -> list[Any]:
        del options
        return list(self._next(question))

    def text(self, question: str, default: str = "", check: Any = None) -> str:
        del default
        reply = str(self._next(question))
        assert check is None or check(reply) is None
        return reply

    def path(self, question: str, default: str = "") -> str:
        return str(self._next(question) or default)

    def confirm(self, question: str, default: bool = False) -> bool:
        del default
        return bool(self._next(question))


class Recorder:
    """Actions that note what they were asked to do."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error = error

    def note(self, *call: Any) -> str:
        self.calls.append(call)
        error, self.error = self.error, None
        if error is not None:
            raise error
        return f"did {call[0]} [/INST]"

    def actions(self) -> Actions:
        def more(count: int, timed: bool) -> Sequence[Trial]:
            self.note("more", count, timed)
            return front([*FRONT, *(trial(4 + number) for number in range(count))])

        def talk(chosen: Trial) -> None:
            self.note("chat", chosen.number)

        return Actions(
            save=lambda t, folder, strategy: self.note("save", t.number, folder, strategy),
            upload=lambda t, repo, private, s: self.note("upload", t.number, repo, private, s),
            chat=talk,
            benchmark=lambda t, tasks, both: self.note("benchmark", t.number, tasks, both),
            more_trials=more,
        )


def run(
    answers: Answers,
    script: Script | None = None,
    recorder: Recorder | None = None,
    trials: Sequence[Trial] = FRONT,
) -> tuple[list[tuple[Any, ...]], str]:
    """Run the menu; what was done, and what was shown."""
    recorder = recorder or Recorder()
    console = Console(file=io.StringIO(), width=120)
    dialogue = Dialogue(answers, MODEL, ARGV, PlainReporter(console), BASELINE, script)
    Menu(dialogue, recorder.actions()).run(trials)
    assert script is None or not script.replies
    return recorder.calls, written(console)


def command_in(text: str) -> list[str]:
    """The command that goes on, out of what was printed."""
    lines = text.splitlines()
    return shlex.split(lines[lines.index("To go on from here:") + 1])


class Scoring(Recorder):
    """Actions that can score the finalists."""

    def actions(self) -> Actions:
        return replace(
            super().actions(),
            finalists=lambda trials: self.note("finalists", *(t.number for t in trials)),
        )


def test_the_trials_with_names_are_scored_before_the_question_once() -> None:
    """Not again after "another trial", but again for another front."""
    script = Script(0, "another", "more", "1", "exit")
    calls, text = run(Answers(), script, Scoring())
    assert calls == [("finalists", 3, 0), ("more", 1, False), ("finalists", 4, 0)]
    assert text.count("did finalists") == 2


def test_without_a_question_they_are_not_scored() -> None:
    assert run(Answers(trial_index=0, model_action="chat"), None, Scoring())[0] == [("chat", 3)]
    assert run(Answers(model_action="none"), None, Scoring())[0] == []
    assert run(Answers(), None, Scoring())[0] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StudyError("No memory.")])
def test_one_can_choose_even_if_they_cannot_be_scored(error: BaseException) -> None:
    calls, _ = run(Answers(), Script("exit"), Scoring(error))
    assert calls == [("finalists", 3, 0)]


# By settings alone.


def test_settings_alone_save(tmp_path: Path) -> None:
    answers = Answers(
        trial_index=1, model_action="save", save_directory=tmp_path, export_strategy="adapter"
    )
    calls, text = run(answers)
    assert calls == [("save", 2, tmp_path, "adapter")]
    assert "did save [/INST]" in text
    assert "original" in text


def test_details_of_the_chosen_trial_are_shown_before_anything_is_done_with_it() -> None:
    told: list[int] = []

    def details(chosen: Trial) -> list[str]:
        told.append(chosen.number)
        return ["by category", "apart"]

    console = Console(file=io.StringIO(), width=120)
    answers = Answers(trial_index=1, model_action="chat")
    dialogue = Dialogue(answers, MODEL, ARGV, PlainReporter(console), BASELINE)
    recorder = Recorder()
    Menu(dialogue, replace(recorder.actions(), details=details)).run(FRONT)
    assert told == [2]
    assert recorder.calls == [("chat", 2)]
    assert "by category\n\napart" in written(console)


def test_settings_alone_upload_chat_and_benchmark() -> None:
    upload = Answers(
        trial_index=0,
        model_action="upload",
        upload_repo_id="me/x",
        upload_repo_private=False,
        export_strategy="merge",
    )
    assert run(upload)[0] == [("upload", 3, "me/x", False, "merge")]
    assert run(Answers(trial_index=0, model_action="chat"))[0] == [("chat", 3)]
    benchmark = Answers(trial_index=0, model_action="benchmark", benchmarks=("mmlu", "own"))
    assert run(benchmark)[0] == [("benchmark", 3, ("mmlu", "own"), True)]
    edited_alone = replace(benchmark, benchmark_original=False)
    assert run(edited_alone)[0] == [("benchmark", 3, ("mmlu", "own"), False)]


def test_model_action_none_shows_the_front_and_asks_nothing() -> None:
    calls, text = run(Answers(model_action="none"))
    assert calls == []
    assert "90/100" in text
    assert "To go on" not in text


def test_additional_trials_by_setting_come_first_and_once() -> None:
    answers = Answers(trial_index=0, model_action="chat", n_additional_trials=2)
    assert run(answers)[0] == [("more", 2, True), ("chat", 5)]
    assert run(Answers(model_action="none", n_additional_trials=0))[0] == []


def test_without_a_terminal_the_front_and_the_command_are_printed() -> None:
    calls, text = run(Answers())
    assert calls == []
    assert "index" in text
    assert command_in(text) == [
        *("heretic", MODEL, "--n-trials", "4", "--checkpoint-action", "continue"),
        *("--trial-index", "0", "--model-action", "save"),
        *("--save-directory", "tiny-1b-heretic", "--export-strategy", "merge"),
    ]


def test_the_command_keeps_what_was_answered() -> None:
    calls, text = run(Answers(trial_index=2, model_action="upload", upload_repo_id="me/x"))
    assert calls == []
    assert command_in(text) == [
        *("heretic", MODEL, "--n-trials", "4", "--checkpoint-action", "continue"),
        *("--upload-repo-private", "--export-strategy", "merge"),
    ]


def test_the_command_never_restarts_the_run() -> None:
    argv = ["heretic", "m x", "--checkpoint-action=restart", "--n-additional-trials", "5"]
    assert way_on(argv, Answers(trial_index=0, model_action="chat"), "m x") == (
        "heretic 'm x' --checkpoint-action continue"
    )


def test_switches_take_no_value_with_them() -> None:
    argv = ["h", "--upload-repo-private", "model", "--no-upload-repo-private", "--trial_index", "3"]
    assert without_options(argv, {"upload_repo_private", "trial_index"}) == ["h", "model"]


def test_open_questions_are_known_before_the_work_starts() -> None:
    assert Answers(model_action="none").open_questions() == []
    assert Answers(trial_index=0, model_action="save").open_questions() == [
        "save_directory",
        "export_strategy",
    ]
    assert "model_action" in Answers().open_questions()


@pytest.mark.parametrize("index", [4, 99, -1])
def test_trial_index_out_of_range_names_the_range(index: int) -> None:
    with pytest.raises(SettingsError, match="rows 0 to 3"):
        run(Answers(trial_index=index, model_action="chat"))
    with pytest.raises(SettingsError, match="rows 0 to 3"):
        run(Answers(trial_index=index), Script())


@pytest.mark.parametrize(("name", "number"), [("fewest", 3), ("knee", 3), ("least-damage", 0)])
def test_trial_index_may_be_a_name(name: str, number: int) -> None:
    """All rows lie on one line here, so the knee is the row with the fewest refusals."""
    assert run(Answers(trial_index=name, model_action="chat"))[0] == [("chat", number)]


def test_trial_index_may_not_be_a_name_of_other_fronts() -> None:
    with pytest.raises(SettingsError, match="have names are fewest, knee, least-damage"):
        run(Answers(trial_index="most", model_action="chat"))


def test_the_front_shows_its_names() -> None:
    lines = run(Answers(model_action="none"))[1].splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()[:1].isdigit()}
    assert "fewest, knee" in rows["0"]
    assert "least-damage" in rows["3"]
    assert not any(name in rows["1"] for name in ("fewest", "knee", "least"))


class TestMaxRefusals:
    """Row 0 has 60 refusals of 100, row 1 has 70, row 2 has 80, row 3 has 90."""

    def test_answers_without_a_terminal(self) -> None:
        calls, text = run(Answers(max_refusals=80, model_action="chat"))
        assert calls == [("chat", 1)]
        assert "Best with at most 80 refusals: index 2, trial 1: refusals 80/100" in text

    def test_a_row_that_is_given_counts_more(self) -> None:
        answers = Answers(max_refusals=80, trial_index="least-damage", model_action="chat")
        assert run(answers)[0] == [("chat", 0)]

    def test_the_nearest_is_taken_and_this_is_said(self) -> None:
        calls, text = run(Answers(max_refusals=3, model_action="chat"))
        assert calls == [("chat", 3)]
        assert "No trial has at most 3 refusals yet; the nearest: index 0, trial 3" in text

    def test_is_where_the_choice_begins_at_a_terminal(self) -> None:
        script = Script("exit")
        run(Answers(max_refusals=75), script)
        assert script.offered == 1

    def test_other_questions_are_left(self) -> None:
        text = run(Answers(max_refusals=75))[1]
        assert "--trial-index" not in command_in(text)
        assert "--model-action" in command_in(text)

    def test_nothing_has_been_found(self) -> None:
        assert run(Answers(max_refusals=75, model_action="none"), trials=[])[0] == []


def test_trial_index_of_an_empty_front() -> None:
    with pytest.raises(SettingsError, match="no trial has completed"):
        run(Answers(trial_index=0, model_action="chat"), trials=[])


def test_an_empty_front_without_a_terminal() -> None:
    calls, text = run(Answers(), trials=[])
    assert calls == []
    assert "No trial has completed yet." in text


def test_without_a_terminal_an_existing_destination_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    answers = Answers(
        trial_index=0, model_action="save", save_directory=tmp_path, export_strategy="merge"
    )
    with pytest.raises(ExportError, match="not empty"):
        run(answers)


def earlier_export(folder: Path) -> None:
    """What tells a folder that Heretic saved from others."""
    folder.mkdir()
    for name in ("abliteration_params.json", "README.md"):
        (folder / name).write_text("{}")
    (folder / "reproduce.json").write_text('{"files": {}}')


def test_without_a_terminal_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    earlier_export(tmp_path / "ours")
    check_destination(tmp_path / "ours", "org/base")  # what is said before the search
    answers = Answers(
        trial_index=0,
        model_action="save",
        save_directory=tmp_path / "ours",
        export_strategy="merge",
    )
    calls, _ = run(answers)
    assert calls == [("save", 3, tmp_path / "ours", "merge")]
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        run(answers)


@pytest.mark.parametrize("error", [ExportError("disk full"), ValueError("x"), KeyboardInterrupt()])
def test_without_a_terminal_a_failure_ends_the_program(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(Answers(trial_index=0, model_action="chat"), recorder=Recorder(error))


def test_a_malformed_repository_is_a_settings_error() -> None:
    answers = Answers(
        trial_index=0,
        model_action="upload",
        upload_repo_id="not a name",
        upload_repo_private=True,
        export_strategy="merge",
    )
    with pytest.raises(SettingsError, match="upload_repo_id"):
        run(answers)


def test_actions_that_are_not_there() -> None:
    display = PlainReporter(Console(file=io.StringIO()))
    only_save = Actions(save=lambda *_: "")
    for action in ("chat", "benchmark", "upload"):
        answers = Answers(trial_index=0, model_action=action)
        with pytest.raises(SettingsError, match="not available"):
            Menu(Dialogue(answers, MODEL, ARGV, display), only_save).run(FRONT)


def test_answers_are_read_from_the_real_settings() -> None:
    settings = Settings(model="m", trial_index=3, save_directory="out", benchmarks=["mmlu"])
    answers = options_of(Answers, settings)
    assert answers == Answers(trial_index=3, save_directory=Path("out"), benchmarks=("mmlu",))


# With a user.


def test_every_action_in_turn(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    script = Script(
        *(2, "save", folder, "merge", "upload", "me/x", True, "adapter", "chat"),
        *("benchmark", ["gsm8k"], True, "another", 0, "exit"),
    )
    calls, _ = run(Answers(), script)
    assert calls == [
        ("save", 1, folder, "merge"),
        ("upload", 1, "me/x", True, "adapter"),
        ("chat", 1),
        ("benchmark", 1, ("gsm8k",), True),
    ]


def test_more_trials_show_the_new_front_and_go_back_to_the_choice() -> None:
    calls, text = run(Answers(), Script("more", "2", 5, "more", "1", "exit"))
    assert calls == [("more", 2, False), ("more", 1, False)]
    assert text.count("The front: ") == 3
    assert "40/100" in text


def test_enter_alone_runs_the_usual_number_of_trials() -> None:
    """Nothing is typed in already, to which digits would be added."""

    class Asked(Script):
        def text(self, question: str, default: str = "", check: Check | None = None) -> str:
            assert "(Enter: 50)" in question
            assert default == ""
            assert check is not None
            assert check("") is None
            assert check("9" * 30) is not None
            assert check("\u0663") is not None
            return str(super().text(question, default, check))

    calls, _ = run(Answers(), Asked("more", "", "exit"))
    assert calls == [("more", 50, False)]


def test_back_is_one_level_up() -> None:
    script = Script(0, "save", Back, Back, 1, "more", Back, Back, Back)
    calls, _ = run(Answers(), script)
    assert calls == []
    assert script.asked == [
        "Which trial?",
        "What to do with trial 3?",
        "Folder to save in:",
        "What to do with trial 3?",
        "Which trial?",
        "What to do with trial 2?",
        "How many more trials? (Enter: 50)",
        "What to do with trial 2?",
        "Which trial?",
    ]


def test_settings_answer_once_then_the_program_ends(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answers = Answers(trial_index=1, model_action="save", save_directory=folder)
    calls, _ = run(answers, Script("merge"))
    assert calls == [("save", 2, folder, "merge")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ExportError("Disk full.", remedy="Free [/INST] space."), "✗ Disk full. Free [/INST]"),
        (KeyboardInterrupt(), "Stopped."),
        (ValueError("[/INST] odd"), "ValueError: [/INST] odd"),
    ],
)
def test_no_failure_ends_the_menu(tmp_path: Path, error: BaseException, told: str) -> None:
    recorder = Recorder(error)
    answers = Answers(trial_index=0, model_action="save", save_directory=tmp_path / "new")
    script = Script("merge", "chat", Back, "exit")
    calls, text = run(answers, script, recorder)
    assert [call[0] for call in calls] == ["save", "chat"]
    assert told in text


def test_additional_trials_by_setting_that_fail_do_not_end_the_menu() -> None:
    recorder = Recorder(ExportError("Ten trials failed in a row."))
    calls, text = run(Answers(n_additional_trials=3), Script(0, "chat", "exit"), recorder)
    assert calls == [("more", 3, True), ("chat", 3)]
    assert "✗ Ten trials failed in a row." in text


def test_an_existing_destination_is_asked_about(tmp_path: Path) -> None:
    foreign, ours, free = (tmp_path / name for name in ("foreign", "ours", "free"))
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    earlier_export(ours)
    answers = Answers(trial_index=0, save_directory=foreign, export_strategy="merge")
    script = Script("save", ours, False, free, "save", ours, True, "exit")
    calls, text = run(answers, script)
    assert calls == [("save", 3, free, "merge"), ("save", 3, ours, "merge")]
    assert "foreign exists and is not empty." in text


def test_destination_problem(tmp_path: Path) -> None:
    assert destination_problem(tmp_path) is None
    assert destination_problem(tmp_path / "new") is None
    (tmp_path / "file").write_text("x")
    assert "not a folder" in (destination_problem(tmp_path / "file") or "")


def test_repository_names() -> None:
    for good in ("me/x", "me/Model-1.2_b", "gpt2"):
        assert repository_problem(good) is None
    for bad in ("", "a/b/c", "me/with space", "me/a--b", "me/a..b", "/x", "me/"):
        assert repository_problem(bad)


def test_lines_to_choose_from_are_aligned() -> None:
    lines = front_lines([trial(9), trial(0)])
    assert lines == [
        "0  fewest, knee  trial 9  refusals 0/100   KL divergence 0.0930  global 21.50",
        "1  least-damage  trial 0  refusals 90/100  KL divergence 0.0030  per layer",
    ]
    assert front_lines([trial(3)]) == [
        "0  trial 3  refusals 60/100  KL divergence 0.0330  global 15.50"
    ]
    assert front_lines([]) == []


# On a pseudo-terminal.


def test_on_a_terminal_save_fail_go_on_and_leave(tmp_path: Path) -> None:
    child = in_terminal("menu", tmp_path)
    child.expect("Which trial")
    child.send(DOWN + ENTER)
    child.expect("What to do with trial 2")
    child.send(ENTER)
    child.expect("Folder to save in")
    child.send(CTRL_A + CTRL_K + "full" + ENTER)
    child.expect("What to save")
    child.send(ENTER)
    child.expect("The disk is full. Free some space.")
    child.expect("What to do with trial 2")
    child.send(ENTER)
    child.expect("Folder to save in")
    child.send(ENTER)
    child.expect("What to save")
    child.send(DOWN + ENTER)
    child.expect("Saved trial 2 in tiny-1b-heretic as adapter")
    child.expect("What to do with trial 2")
    child.send(CTRL_C)
    child.expect("Which trial")
    child.send(CTRL_C)
    child.expect("menu left")
    assert end(child) == 0
    assert (tmp_path / "tiny-1b-heretic" / "abliteration_params.json").is_file()


def test_on_a_terminal_ctrl_c_and_ctrl_d_go_one_level_up(tmp_path: Path) -> None:
    child = in_terminal("menu", tmp_path, columns=80)
    child.expect("Which trial")
    child.send(ENTER)
    child.expect("What to do with trial 3")
    child.send(DOWN + ENTER)
    child.expect("Repository")
    child.send(CTRL_A + CTRL_K + "bad name" + ENTER)
    child.expect("A repository is named")
    child.send(CTRL_A + CTRL_K + CTRL_D)
    child.expect("What to do with trial 3")
    child.send(DOWN * 3 + ENTER)
    child.expect("Which benchmarks")
    child.send(ENTER)  # nothing ticked: the question stays
    child.send(" " + ENTER)
    child.expect("On which model")
    child.send(DOWN + ENTER)
    child.expect("Benchmarks of 3: mmlu, both=True")
    child.expect("What to do with trial 3")
    child.send(DOWN * 6 + ENTER)
    child.expect("menu left")
    assert end(child) == 0


def test_on_a_terminal_more_trials_and_chat(tmp_path: Path) -> None:
    child = in_terminal("menu", tmp_path, n_additional_trials=1)
    child.expect("Search: 5 trials")
    child.expect("Which trial")
    child.send(DOWN * 5 + ENTER)
    child.expect("How many more trials")
    child.send(CTRL_A + CTRL_K + "0" + ENTER)
    child.expect("above 0")
    child.send(CTRL_A + CTRL_K + "2" + ENTER)
    child.expect("Search: 6 trials")
    child.expect("Which trial")
    child.send(ENTER)
    child.expect("What to do with trial 5")
    child.send(DOWN * 2 + ENTER)
    child.expect("you:")
    child.send("hello" + ENTER)
    child.expect("end hello")
    child.expect("you:")
    child.send("exit" + ENTER)
    child.expect("What to do with trial 5")
    child.send(CTRL_C)
    child.expect("Which trial")
    child.send(DOWN * 7 + ENTER)
    child.expect("menu left")
    assert end(child) == 0


def test_without_any_terminal(tmp_path: Path) -> None:
    result = in_pipe("menu", tmp_path)
    assert result.returncode == 0, result.stderr
    assert command_in(result.stdout)[:4] == ["heretic", MODEL, "--n-trials", "4"]
    assert "\x1b" not in result.stdout
    saved = in_pipe(
        *("menu", tmp_path),
        trial_index=3,
        model_action="save",
        save_directory="out",
        export_strategy="merge",
    )
    assert saved.returncode == 0, saved.stderr
    assert "Saved trial 0 in out as merge." in saved.stdout


def test_the_choice_begins_at_what_max_refusals_chooses(tmp_path: Path) -> None:
    child = in_terminal("menu", tmp_path, max_refusals=80)
    child.expect("Best with at most 80 refusals")
    child.expect("Which trial")
    child.send(ENTER)
    child.expect("What to do with trial 1")
    child.send(CTRL_C + CTRL_C)
    child.expect("menu left")
    assert end(child) == 0


# A run that already exists.


def ask_checkpoint(answers: Answers, script: Script | None = None, ended: str | None = None) -> str:
    display = PlainReporter(Console(file=io.StringIO(), width=120))
    dialogue = Dialogue(answers, MODEL, ARGV, display, prompter=script)
    return choose_checkpoint(dialogue, completed=2, n_trials=4, front=FRONT, ended=ended)


def test_checkpoint_by_setting_and_by_the_user() -> None:
    assert ask_checkpoint(Answers(checkpoint_action="restart")) == "restart"
    assert ask_checkpoint(Answers(), Script("continue")) == "continue"
    assert ask_checkpoint(Answers(), Script("restart", True)) == "restart"
    assert ask_checkpoint(Answers(), Script("restart", False)) == "quit"
    assert ask_checkpoint(Answers(), Script(Back)) == "quit"


def test_a_search_that_cannot_go_on_is_not_offered_to_continue() -> None:
    ended, script = "It was judged by another version.", Script("restart", True)
    assert ask_checkpoint(Answers(), script, ended) == "restart"
    assert ended in script.asked[0]
    with pytest.raises(AssertionError, match="continue"):
        ask_checkpoint(Answers(), Script("continue"), ended)


def test_checkpoint_without_a_terminal(tmp_path: Path) -> None:
    result = in_pipe("checkpoint", tmp_path, trial_index=0, model_action="chat")
    assert result.returncode == 0, result.stderr
    assert "A run with 2 of 4 trials already exists. It is continued" in result.stdout
    assert "chosen: continue" in result.stdout


def test_checkpoint_on_a_terminal(tmp_path: Path) -> None:
    child = in_terminal("checkpoint", tmp_path)
    child.expect("already exists")
    child.send(DOWN + ENTER)
    child.expect("Delete 2 trials")
    child.send("y")
    child.expect("chosen: restart")
    assert end(child) == 0
    child = in_terminal("checkpoint", tmp_path)
    child.expect("already exists")
    child.send(CTRL_C)
    child.expect("chosen: quit")
    assert end(child) == 0
