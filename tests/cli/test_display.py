"""Live panel, plain lines and tables: nothing crashes them, and nothing leaks into a file."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest
from rich.console import Console
from tests.support.terminal import arguments, end, environment, in_pipe, in_terminal, plain, written
from tests.support.terminal_program import BASELINE, HOSTILE, run_search, run_stages, trial

from heretic.cli.display.progress import finished_text
from heretic.cli.display.reporter import LoggedDisplay, PlainReporter, RichReporter, make_reporter
from heretic.cli.display.tables import (
    Replies,
    before_after_table,
    direction_text,
    front_table,
    plan_table,
    scores_table,
)
from heretic.cli.display.text import make_console, memory_text
from heretic.events import Event, Notice, SearchFinished, Several, StageFinished, StageStarted
from heretic.records import LayerWeights, Plan, Score, Trial, front
from heretic.system.display import bytes_text, clip, safe
from heretic.utils import get_trial_parameters


def free_plan(**layers: tuple[tuple[float, ...], ...]) -> Plan:
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={component: LayerWeights(rows) for component, rows in layers.items()},
        row_normalization="full",
        rank=2,
    )


def shown(renderable, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return written(console)


def test_front_table_shows_the_index_users_give_and_the_baseline() -> None:
    table = shown(front_table(front([trial(number) for number in range(3)]), BASELINE))
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["index", "name", "trial", "refusals", "KL", "divergence", "direction"]
    assert rows[2] == ["original", "97/100", "0.0000"]
    assert rows[3] == ["0", "fewest,", "knee", "2", "70/100", "0.0230", "per", "layer"]
    assert rows[4] == ["1", "1", "80/100", "0.0130", "global", "13.50"]
    assert rows[5][:3] == ["2", "least-damage", "0"]


def test_front_table_says_what_it_leaves_out() -> None:
    table = shown(front_table([trial(number) for number in range(9)], limit=4))
    assert "and 5 more" in table


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_front_table_loses_nothing_in_a_narrow_terminal(width: int) -> None:
    parts = {"refusals": "9/100 (1 evasion, 1 degenerate)", "kl_divergence": "0.0230"}
    trials = [
        replace(
            trial(number),
            plan=trial(2).plan,
            scores=tuple(
                replace(score, display=parts[score.name], interval=(0.012345, 0.23456))
                for score in trial(number).scores
            ),
        )
        for number in range(3)
    ]
    table = front_table(front(trials), BASELINE)
    text = shown(table, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("index", "name", "trial", "refusals", "degenerate)", "evasion,", "[0.012,"):
        assert word in text.split(), word


def test_front_table_says_once_what_all_rows_have_in_common() -> None:
    same = [replace(trial(number), plan=trial(2).plan) for number in range(3)]
    text = shown(front_table(front(same), BASELINE))
    assert text.count("per layer") == 1
    assert "direction: per layer" in text


def test_front_table_of_nothing() -> None:
    assert "index" in shown(front_table([], BASELINE))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_table_reads_markup_or_is_too_wide(width: int) -> None:
    tables = [
        before_after_table([Replies(HOSTILE, HOSTILE * 20, "x" * 500)], heading=HOSTILE),
        scores_table({HOSTILE: BASELINE, "edited": trial(1).scores}),
        plan_table(trial(1).plan),
    ]
    for table in tables:
        text = shown(table, width)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width
    if width == 120:
        assert "[/INST] [bold red]loud[/]" in shown(tables[0], width)


def test_plan_table_shows_a_kernel_of_zero_as_off() -> None:
    text = shown(plan_table(trial(1).plan))
    assert "mlp.down_proj" in text
    assert "off" in text


def shown_row(plan: Plan, component: str) -> list[str]:
    lines = [line.split() for line in shown(plan_table(plan)).splitlines()]
    return next(line[1:] for line in lines if line[:1] == [component])


def test_plan_table_shows_a_free_form_kernel_by_its_extremes() -> None:
    plan = free_plan(attn=((0.25, 0.0), (1.5, 0.0), (0.5, -0.125)), mlp=((0.0, 0.0),) * 3)
    assert shown_row(plan, "attn.o_proj") == ["1.50", "1.00", "-0.12", "free"]
    assert shown_row(plan, "mlp.down_proj") == ["off"]
    assert "direction: per layer x 2; row normalization: full" in shown(plan_table(plan))


def test_plan_table_shows_no_kernel_as_off_that_edits() -> None:
    plan = free_plan(attn=((0.0, 0.7), (0.0, 0.0)), mlp=((), (-0.5,)))
    assert shown_row(plan, "attn.o_proj") == ["0.70", "0.00", "0.00", "free"]
    assert shown_row(plan, "mlp.down_proj") == ["0.00", "0.00", "-0.50", "free"]


@pytest.mark.parametrize(
    ("rank", "texts"),
    [(1, ("per layer", "global 13.50")), (2, ("per layer x 2", "global 13.50 x 2"))],
)
def test_several_directions_are_told(rank: int, texts: tuple[str, str]) -> None:
    plans = [replace(trial(number).plan, rank=rank) for number in range(2)]
    assert tuple(direction_text(plan) for plan in plans) == texts


def test_parameters_of_a_trial_by_name() -> None:
    kernel = {
        "attn.o_proj.max_weight": "1.10",
        "attn.o_proj.max_weight_position": "17.20",
        "attn.o_proj.min_weight": "0.50",
        "attn.o_proj.min_weight_distance": "9.00",
    }
    of_rank_1 = get_trial_parameters(trial(1))
    assert kernel.items() <= of_rank_1.items()
    assert "rank" not in of_rank_1
    assert of_rank_1["direction_index"] == "13.50"
    free = free_plan(attn=((0.5, 0.25), (), (1.0,)), mlp=())
    assert get_trial_parameters(replace(trial(0), plan=free)) == {
        "direction_scope": "per layer",
        "row_normalization": "full",
        "rank": "2",
        "attn.o_proj.weights": "0.50 0.25, , 1.00",
        "mlp.down_proj.weights": "",
    }


def test_safe_takes_control_codes_out_and_leaves_text_alone() -> None:
    assert safe("a\r\nb\tc [/INST] é 漢 👍") == "a\nb\tc [/INST] é 漢 👍"
    assert "\x1b" not in safe(HOSTILE)
    assert "\x07" not in safe(HOSTILE)
    assert safe("\u202eabc\x9b") == "\ufffdabc\ufffd"
    assert clip("abcdef", 4) == "abc…"


def test_bytes_are_readable() -> None:
    assert [bytes_text(count) for count in (1500, 22e6, 1.24e9, 640e9)] == [
        "2 kB",
        "22 MB",
        "1.2 GB",
        "640 GB",
    ]


def test_memory_is_told_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory_text().startswith("memory ")
    assert "GPU" not in memory_text()


def test_memory_of_the_accelerators_is_told_once_cuda_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cuda:
        is_initialized = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        memory_reserved = staticmethod(lambda device: 1e9 * (device + 1))

    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": Cuda}))
    assert memory_text().endswith("GPU 3.0 GB")


def test_a_file_is_no_terminal_even_if_the_environment_claims_it(tmp_path) -> None:
    result = in_pipe("search", tmp_path, env={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"})
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "[/INST] [bold red]loud[/]" in result.stdout
    assert "trial 3: refusals 60/100, KL divergence 0.0330; 4 of 4 trials" in result.stdout
    assert "trial 2 failed: [/INST]" in result.stdout
    assert "Residuals: 400 prompts" in result.stdout


def test_an_encoding_without_the_characters_ends_nothing(tmp_path) -> None:
    result = in_pipe("search", tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert "trial 3: refusals 60/100" in result.stdout


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_live_panel(tmp_path, columns: int) -> None:
    child = in_terminal("search", tmp_path, columns=columns)
    child.expect("front so far")
    child.expect("elapsed")
    assert end(child) == 0
    text = plain(child.before)
    assert "trial 2 failed: [/INST]" in text
    assert "✓ Search: 4 trials in 4m 4s" in text
    assert "\x1b]0;" not in child.before


def test_an_exception_takes_the_panel_down(tmp_path) -> None:
    child = in_terminal("crash", tmp_path)
    assert end(child) == 1
    hidden, visible = child.before.rfind("\x1b[?25l"), child.before.rfind("\x1b[?25h")
    assert visible > hidden >= 0
    assert plain(child.before).rstrip().endswith("RuntimeError: crashed on purpose")


def test_an_interruption_while_the_panel_goes_down_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)

    def interrupted() -> None:
        raise KeyboardInterrupt

    reporter = make_reporter(console)
    reporter.emit(StageStarted("Loading"))
    monkeypatch.setattr(console, "clear_live", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reporter.emit(StageFinished())
    reporter.close()
    assert written(console).endswith("\x1b[?25h")


def test_an_interruption_while_the_panel_goes_up_is_what_the_caller_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)

    def interrupted(hook: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "push_render_hook", interrupted)
    with pytest.raises(KeyboardInterrupt), make_reporter(console) as reporter:
        reporter.emit(StageStarted("Loading model"))
    assert written(console).endswith("\x1b[?25h")  # the cursor is shown again


def test_the_kind_of_display_follows_the_console() -> None:
    assert isinstance(make_reporter(Console(force_terminal=True)), RichReporter)
    assert isinstance(make_reporter(Console(file=io.StringIO())), PlainReporter)
    dumb = Console(force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_reporter(dumb), PlainReporter)


def test_console_without_a_terminal_has_a_width_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == 120
    monkeypatch.setenv("COLUMNS", "60")
    assert make_console().width == 60


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        del text
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("kind", [PlainReporter, RichReporter])
def test_a_terminal_that_went_away_costs_nothing(kind) -> None:
    with kind(Console(file=Closed())) as reporter:
        run_stages(reporter)
        assert len(run_search(reporter, 2)) == 2


def test_a_reader_that_leaves_does_not_end_the_search(tmp_path) -> None:
    command = [sys.executable, *arguments("search", {})]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=PIPE, stderr=PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=300) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("kind", [PlainReporter, RichReporter])
def test_events_in_any_order_are_taken(kind) -> None:
    with kind(Console(file=io.StringIO(), force_terminal=True)) as reporter:
        reporter.emit(StageFinished("nothing began"))
        reporter.emit(StageStarted("a"))
        reporter.emit(StageStarted("b"))
        reporter.close()
        reporter.emit(Notice("after closing"))
        reporter.close()


def test_what_is_shown_is_logged() -> None:
    class Kept(PlainReporter):
        def __init__(self) -> None:
            super().__init__(Console(file=io.StringIO()))
            self.events: list[Event] = []

        def emit(self, event: Event) -> None:
            self.events.append(event)

    display, log = Kept(), Kept()
    run_stages(LoggedDisplay(display, Several(display, log)))
    assert display.events == log.events
    assert len(log.events) == 6


@pytest.mark.parametrize(
    ("reason", "said", "level"),
    [
        ("done", "Search: 4 trials", "success"),
        ("stagnant", "the front has stopped growing: 4 trials", "success"),
        ("interrupted", "what was found is kept: 4 trials", "warning"),
        ("failed", "too many failures: 4 trials", "warning"),
    ],
)
def test_why_a_search_ended_is_said(reason: str, said: str, level: str) -> None:
    text, shown_as = finished_text(SearchFinished(reason, 4, 60.0))
    assert said in text
    assert shown_as == level


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1800.0, "Time limit of 30m reached: 23 of 60 trials"),
        (90.0, "Time limit of 1m 30s reached: 23 of 60 trials"),
        (7200.0, "Time limit of 2h reached: 23 of 60 trials"),
        (45.0, "Time limit of 45s reached: 23 of 60 trials"),
    ],
)
def test_a_time_limit_is_said(seconds: float, said: str) -> None:
    event = SearchFinished("time", 23, 1700.0, 60, time_limit=seconds)
    assert finished_text(event) == (said, "success")


def test_trials_that_cannot_be_told_apart_name_each_other() -> None:
    def refusing(number: int, count: int) -> Trial:
        values = tuple(float(prompt < count) for prompt in range(100))
        score = Score("refusals", count / 100, "minimize", f"{count}/100", values=values)
        return replace(trial(number), scores=(score,))

    table = shown(front_table([refusing(0, 3), refusing(1, 5), refusing(2, 60)]))
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.split()}
    assert (rows["0"][-1], rows["1"][-1]) == ("1", "0")
    assert rows["2"][-1] != "0"
    assert "do not tell apart" in table


def test_differences_stand_below_two_models() -> None:
    def refusals(count: int) -> Score:
        values = tuple(float(prompt < count) for prompt in range(100))
        return Score("refusals", count / 100, "minimize", f"{count}/100", values=values)

    rows = {"original": (refusals(60),), "edited": (refusals(3),)}
    table = shown(scores_table(rows, with_difference=True))
    assert "difference" in table
    assert "-0.57" in table
    assert "difference" not in shown(scores_table(rows))


FULL = """
import logging, resource, signal, sys
from pathlib import Path
from heretic.runs.log import logging_to
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # as a full disk: no file takes more
with logging_to(Path(sys.argv[1])):
    for number in range(50):
        logging.getLogger("heretic").info("entry %d", number)
print("done")
"""


@pytest.mark.parametrize("place", ["heretic.log", "no-such-folder/heretic.log"])
def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, place: str) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout == "done\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("Warning: the log ")
    assert place in line
    assert "goes on without it" in line
