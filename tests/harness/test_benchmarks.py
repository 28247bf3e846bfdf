"""Benchmarks: both models answer the same questions; what is done is kept."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support import benchmark_tasks, tiny

from heretic.cli.display.tables import benchmark_table
from heretic.config import Settings
from heretic.errors import RunError, SettingsError
from heretic.events import Silent
from heretic.harness import measure as harness
from heretic.harness.measure import LoadedLM, measure, reasoning_block
from heretic.harness.results import (
    Measurement,
    Metric,
    PairedMetric,
    Stratum,
    compare,
    paired_interval,
)
from heretic.harness.run import Outcome, Wanted, run_benchmarks
from heretic.harness.store import ResultFile
from heretic.harness.tasks import OFFERED, check_tasks, remedy_for
from heretic.model import Model
from heretic.records import ATTENTION, MLP, Kernel, Plan, Trial

TOKENS = 5
QUESTIONS = [f"What is {number} and {number}?" for number in range(10)]
NO_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + tiny.CHAT_TEMPLATE
)


def plan(weight: float) -> Plan:
    kernel = Kernel(weight, 1.0, weight, 9.0)
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={ATTENTION: kernel, MLP: kernel},
        row_normalization="full",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return loaded(tiny.folder(tmp_path_factory.mktemp("model")))


def loaded(path: Path, **overrides: Any) -> Model:
    return Model(
        Settings(model=str(path), dtypes=["float32"], response_prefix="", batch_size=4, **overrides)
    )


@pytest.fixture(scope="module")
def directions(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (model.n_layers + 1, model.hidden_size)
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """Right in `tiny_reply` is what the original replies when Heretic asks it."""
    folder = tmp_path_factory.mktemp("own") / "tasks"
    folder.mkdir()
    benchmark_tasks.choice_task(folder, "tiny_choice")
    other = benchmark_tasks.choice_task(folder, "tiny_other", 5)
    benchmark_tasks.group(folder, "tiny_by_size", ["tiny_choice", other], by_size=True)
    benchmark_tasks.group(folder, "tiny_by_task", ["tiny_choice", other], by_size=False)
    replies = model.get_responses_batched(QUESTIONS, max_new_tokens=TOKENS)
    benchmark_tasks.reply_task(folder, "tiny_reply", QUESTIONS, replies, TOKENS)
    benchmark_tasks.choice_task(folder, "tiny_lost")
    (folder / "tiny_lost.json").unlink()
    return folder


def measured(model: Model, tasks: Path, task: str, **options: Any) -> tuple[Metric, ...]:
    return measure(model, task, key="k", path=tasks, reporter=Silent(), **options).metrics


class TestOneTask:
    def test_the_original_is_asked_as_the_engine_asks_it(self, model: Model, tasks: Path) -> None:
        """Template, system prompt, BOS, padding, greedy decoding and the end of a reply agree."""
        (row,) = measured(model, tasks, "tiny_reply")
        assert (row.task, row.metric, row.n, row.value) == ("tiny_reply", "exact_match", 10, 1.0)
        assert row.strata == (Stratum(1.0, (1.0,) * 10),)

    def test_an_edit_of_weight_zero_changes_nothing(
        self, model: Model, directions: torch.Tensor, tasks: Path
    ) -> None:
        before = [measured(model, tasks, task) for task in ("tiny_choice", "tiny_reply")]
        with model.edited(plan(0.0), directions):
            after = [measured(model, tasks, task) for task in ("tiny_choice", "tiny_reply")]
        assert after == before

    def test_hooked_and_saved_give_the_same(
        self, model: Model, directions: torch.Tensor, tasks: Path, tmp_path: Path
    ) -> None:
        names = ("tiny_choice", "tiny_reply")
        with model.edited(plan(1.2), directions):
            hooked = [measured(model, tasks, task) for task in names]
        model.apply(plan(1.2), directions)
        try:
            model.model.save_pretrained(tmp_path)
            model.tokenizer.save_pretrained(tmp_path)
        finally:
            model.restore()
        saved = loaded(tmp_path)
        assert [measured(saved, tasks, task) for task in names] == hooked
        assert hooked[1][0].value != 1.0  # the edit does change replies

    def test_documents_add_up_to_the_figure(self, model: Model, tasks: Path) -> None:
        for row in measured(model, tasks, "tiny_choice"):
            (stratum,) = row.strata
            assert len(stratum.values) == row.n == 12
            assert row.value == pytest.approx(stratum.mean)
            assert row.higher_is_better
        assert [row.metric for row in measured(model, tasks, "tiny_choice")] == ["acc", "acc_norm"]

    def test_groups(self, model: Model, tasks: Path) -> None:
        parts = {
            task: measured(model, tasks, task)[0].value for task in ("tiny_choice", "tiny_other")
        }
        (by_size,) = measured(model, tasks, "tiny_by_size")
        (by_task,) = measured(model, tasks, "tiny_by_task")
        assert None not in parts.values()
        first, second = (value or 0.0 for value in parts.values())
        assert by_size.value == pytest.approx((12 * first + 5 * second) / 17)
        assert by_task.value == pytest.approx((first + second) / 2)
        assert by_size.n == by_task.n == 17
        assert sum(stratum.weight for stratum in by_task.strata) == pytest.approx(1.0)
        assert by_task.stderr

    def test_a_limit(self, model: Model, tasks: Path) -> None:
        assert {row.n for row in measured(model, tasks, "tiny_choice", limit=3)} == {3}

    def test_random_generators_go_on_as_before(self, model: Model, tasks: Path) -> None:
        before = torch.random.get_rng_state()
        measured(model, tasks, "tiny_choice", limit=1)
        assert torch.equal(torch.random.get_rng_state(), before)


class TestPrompts:
    @pytest.mark.parametrize(
        ("prefix", "block"),
        [
            ("", ""),
            ("Sure, ", ""),
            ("<think></think>", "<think></think>"),
            ("<think></think>\n\nSure", "<think></think>"),
            ("</think>", "</think>"),
        ],
    )
    def test_only_a_reasoning_block_stands_before_answers(
        self, model: Model, monkeypatch: pytest.MonkeyPatch, prefix: str, block: str
    ) -> None:
        monkeypatch.setattr(model, "response_prefix", prefix)
        assert reasoning_block(model) == block
        asked = [{"role": "user", "content": "Why?"}]
        begun = [*asked, {"role": "assistant", "content": "Answer:"}]
        lm = LoadedLM(model, harness._Progress(Silent()))
        assert lm.apply_chat_template(asked).endswith(f"<|im_start|>assistant\n{block}")
        given = lm.apply_chat_template(begun, add_generation_prompt=False)
        assert given.endswith(f"<|im_start|>assistant\n{block}Answer:")

    def test_instructions_survive_a_template_without_a_system_role(self, tmp_path: Path) -> None:
        model = loaded(tiny.folder(tmp_path, chat_template=NO_SYSTEM_ROLE))
        lm = LoadedLM(model, harness._Progress(Silent()))
        text = lm.apply_chat_template(
            [{"role": "system", "content": "Choose well."}, {"role": "user", "content": "Why?"}]
        )
        assert "user\nChoose well.\n\nWhy?<|im_end|>" in text


class TestARun:
    def run(
        self,
        model: Model,
        directions: torch.Tensor,
        tasks: Path,
        folder: Path,
        *names: str,
        weight: float = 1.2,
        original: bool = True,
    ) -> Outcome:
        outcome = Outcome()
        trial = Trial(3, plan(weight), ())
        wanted = Wanted(names, original, path=tasks)
        run_benchmarks(model, trial, directions, folder, wanted, Silent(), outcome)
        return outcome

    def test_both_models_in_one_table(
        self, model: Model, directions: torch.Tensor, tasks: Path, tmp_path: Path
    ) -> None:
        outcome = self.run(model, directions, tasks, tmp_path, "tiny_reply", "tiny_choice")
        reply = outcome.rows[0]
        assert reply.original == 1.0
        assert reply.edited is not None
        assert reply.difference == pytest.approx(reply.edited - 1.0)
        assert reply.interval is not None
        assert reply.paired
        console = Console(file=io.StringIO(), width=140)
        console.print(benchmark_table(outcome.rows, edited="trial 3"))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "tiny_reply" in shown
        assert "1.0000" in shown
        file = json.loads((tmp_path / "benchmarks" / "trial-3.json").read_text())
        assert [row["metric"] for row in file["rows"]] == ["exact_match", "acc", "acc_norm"]

    def test_what_is_done_is_not_done_again(
        self,
        model: Model,
        directions: torch.Tensor,
        tasks: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = self.run(model, directions, tasks, tmp_path, "tiny_choice")
        asked: list[str] = []
        real = harness.measure

        def noted(model: Model, task: str, **options: Any) -> Measurement:
            asked.append("original" if model.is_original else "edited")
            return real(model, task, **options)

        monkeypatch.setattr(harness, "measure", noted)
        assert self.run(model, directions, tasks, tmp_path, "tiny_choice").rows == first.rows
        assert asked == []
        other = self.run(model, directions, tasks, tmp_path, "tiny_choice", weight=0.0)
        assert asked == ["edited"]  # another plan; the original's figures are shared
        assert [row.difference for row in other.rows] == [0.0, 0.0]

    def test_the_edited_model_alone(
        self, model: Model, directions: torch.Tensor, tasks: Path, tmp_path: Path
    ) -> None:
        outcome = self.run(model, directions, tasks, tmp_path, "tiny_choice", original=False)
        assert {(row.original, row.difference) for row in outcome.rows} == {(None, None)}
        assert not (tmp_path / "benchmarks" / "original.json").exists()

    def test_a_task_that_fails_leaves_the_others(
        self, model: Model, directions: torch.Tensor, tasks: Path, tmp_path: Path
    ) -> None:
        outcome = self.run(model, directions, tasks, tmp_path, "tiny_lost", "tiny_choice")
        assert [row.task for row in outcome.rows] == ["tiny_choice"] * 2
        assert list(outcome.failures) == ["tiny_lost"]
        assert "tiny_lost.json" in outcome.failures["tiny_lost"]

    @pytest.mark.parametrize(
        "error",
        [KeyboardInterrupt(), RuntimeError("a library says: KeyboardInterrupt: ")],
        ids=["itself", "another's error"],
    )
    def test_ctrl_c_keeps_finished_tasks(
        self,
        error: BaseException,
        model: Model,
        directions: torch.Tensor,
        tasks: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        real = harness.measure

        def stopped(model: Model, task: str, **options: Any) -> Measurement:
            if task == "tiny_reply":
                raise error
            return real(model, task, **options)

        monkeypatch.setattr(harness, "measure", stopped)
        with pytest.raises(type(error)):
            self.run(model, directions, tasks, tmp_path, "tiny_choice", "tiny_reply")
        file = json.loads((tmp_path / "benchmarks" / "trial-3.json").read_text())
        assert {row["task"] for row in file["rows"]} == {"tiny_choice"}
        assert model.is_original

    def test_unknown_names_are_said_before_any_work(
        self, model: Model, directions: torch.Tensor, tasks: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(SettingsError, match=r"'tiny_chioce'.*Nearest: tiny_choice"):
            self.run(model, directions, tasks, tmp_path, "tiny_choice", "tiny_chioce")
        assert not (tmp_path / "benchmarks").exists()

    def test_a_damaged_file_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "benchmarks").mkdir()
        (tmp_path / "benchmarks" / "original.json").write_text("{")
        with pytest.raises(RunError, match="Delete the file"):
            ResultFile(tmp_path)


def test_all_that_the_menu_offers_exists() -> None:
    check_tasks(tuple(OFFERED))


def test_a_folder_of_tasks_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="benchmark_path"):
        check_tasks(("mmlu",), tmp_path / "none")


def test_remedies() -> None:
    assert "package" in remedy_for(ModuleNotFoundError("No module named 'langdetect'"))
    assert "connection" in remedy_for(ConnectionError("Couldn't reach 'x' on the Hub"))
    assert "terms" in remedy_for(ValueError("Dataset 'x' is a gated dataset on the Hub."))


# Differences.


def of(*values: float, weight: float = 1.0) -> Stratum:
    return Stratum(weight, values)


def figure(*values: float, **changes: Any) -> Measurement:
    strata = (of(*values),)
    row = Metric("t", "acc", strata[0].mean, 0.1, len(values), True, strata)
    return Measurement("t", "k", (replace(row, **changes),), 1, 0.0, {})


def test_paired_proportions_by_hand() -> None:
    """3 gained, 1 lost of 8: (3.5 - 1.5) / 10, with the spread of Agresti and Min."""
    interval = paired_interval([of(0, 0, 0, 1, 1, 1, 1, 0)], [of(1, 1, 1, 0, 1, 1, 1, 0)])
    assert interval is not None
    spread = 1.959964 * math.sqrt(5 - 4 / 10) / 10
    assert interval == pytest.approx((0.2 - spread, 0.2 + spread), abs=1e-6)


def test_no_change_is_no_certainty() -> None:
    interval = paired_interval([of(0, 1, 1, 0)], [of(0, 1, 1, 0)])
    assert interval is not None
    assert interval[0] < 0 < interval[1]
    assert interval[0] == pytest.approx(-interval[1])


def test_a_constant_shift_of_numbers_is_certain() -> None:
    interval = paired_interval([of(0.25, 0.5, 2.5)], [of(0.5, 0.75, 2.75)])
    assert interval == pytest.approx((0.25, 0.25))


def test_strata_weigh_as_they_do_in_the_figure() -> None:
    before = [of(1.0, 2.0, weight=0.5), of(3.0, 5.0, 4.0, weight=0.5)]
    after = [of(2.0, 4.0, weight=0.5), of(3.0, 5.0, 4.0, weight=0.5)]
    interval = paired_interval(before, after)
    assert interval is not None
    assert sum(interval) / 2 == pytest.approx(0.75)
    assert interval[1] - interval[0] == pytest.approx(2 * 1.959964 * 0.5 * 0.5, abs=1e-6)


def test_documents_that_are_not_the_same_are_not_paired() -> None:
    assert paired_interval([of(0, 1)], [of(0, 1, 1)]) is None
    assert paired_interval([], []) is None
    (row,) = compare(figure(0, 1), figure(0, 1, 1))
    assert not row.paired
    assert row.interval is not None
    width = row.interval[1] - row.interval[0]
    assert width == pytest.approx(2 * 1.959964 * math.hypot(0.1, 0.1), abs=1e-6)


@pytest.mark.parametrize(
    ("interval", "higher", "verdict"),
    [
        ((0.1, 0.2), True, "better"),
        ((0.1, 0.2), False, "worse"),
        ((-0.2, -0.1), True, "worse"),
        ((-0.1, 0.1), True, ""),
        ((0.1, 0.2), None, ""),
        (None, True, ""),
    ],
)
def test_verdicts(interval: tuple[float, float] | None, higher: bool | None, verdict: str) -> None:
    row = PairedMetric("t", "acc", 9, higher, 0.5, None, 0.6, None, 0.1, interval, paired=True)
    assert row.verdict == verdict


def test_measurements_survive_the_disk(tmp_path: Path) -> None:
    file = ResultFile(tmp_path)
    file.put(figure(0.5, 1.0, value=None, stderr=None))
    file.write()
    assert ResultFile(tmp_path).measurements["k"] == figure(0.5, 1.0, value=None, stderr=None)
