"""`heretic doctor`: each check, the exit status, and what would fit."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import psutil
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from tests.support import hub_server
from tests.support.hub_server import Hub

from heretic.cli.display.doctor import _cell, rough
from heretic.cli.main import heretic
from heretic.config import Settings
from heretic.doctor import machine, packages
from heretic.doctor.finding import Finding
from heretic.doctor.fit import MODELS, Rates, measure, trial_seconds, what_fits
from heretic.doctor.hub import check_hub
from heretic.doctor.packages import KnownFailure, check_known_failures, check_requirements
from heretic.doctor.room import Room, room_of
from heretic.doctor.shared import check_named
from heretic.pipeline.described import Device
from heretic.system.machine import total_memory

GB = 10**9
GPU = Device("an accelerator", 24 * GB, is_cpu=False, itemsize=2)
RATES = Rates(products=1e12, copies=1e10)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on the loopback interface that is asked in place of the real one."""
    with hub_server.serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()  # one that was made offline asks nothing
        yield running
    huggingface_hub.close_session()


def settings(**values: Any) -> Settings:
    return Settings.restore({"model": "m", **values})


# --- the command -----------------------------------------------------------------------


def test_the_command_says_what_is_here(empty: Path) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(heretic, ["doctor"], standalone_mode=False)
    lines = result.output.splitlines()
    problems = sum(line.startswith("problem ") for line in lines)
    assert result.return_value == int(problems > 0)
    assert max(map(len, lines)) <= 80
    assert any(torch.__version__ in line for line in lines)
    assert all(name in result.output for name in MODELS)
    assert ("Nothing was found that will fail." in lines) == (not problems)
    assert result.output.index("Each cell") < result.output.index("SmolLM2 135M")


def test_programs_get_json_and_a_status(empty: Path) -> None:
    (empty / "config.toml").write_text("n_trails = 3\n")
    result = CliRunner().invoke(heretic, ["doctor", "--json"], standalone_mode=False)
    data = json.loads(result.stdout)
    assert result.return_value == 1
    assert not data["ok"]
    (bad,) = (row for row in data["findings"] if row["name"] == "Settings")
    assert bad["state"] == "problem"
    assert "n_trails" in bad["found"]
    assert {fit["model"] for fit in data["fits"]} == set(MODELS)
    plain = [fit for fit in data["fits"] if not fit["format"].endswith("bits")]
    assert all(fit["trial_seconds"] > 0 for fit in plain if fit["fits"])


@pytest.mark.parametrize(
    ("dtype", "state", "column"),
    [
        ("int8", "problem", None),
        ("no_such_dtype", "problem", None),
        ("float8_e4m3fn", "problem", None),
        ("float16", "ok", "float16"),
    ],
)
def test_any_dtype_of_the_settings_is_told(
    dtype: str, state: str, column: str | None, empty: Path
) -> None:
    (empty / "config.toml").write_text(f'dtypes = ["{dtype}"]\n')
    data = json.loads(CliRunner().invoke(heretic, ["doctor", "--json"]).stdout)
    (found,) = (row for row in data["findings"] if row["name"] == "Settings")
    assert found["state"] == state
    assert dtype in found["found"] or state == "ok"
    formats = {fit["format"] for fit in data["fits"]}
    assert len(formats) == 3
    assert column is None or column in formats


def test_a_narrow_terminal_gets_narrow_lines(empty: Path) -> None:
    output = CliRunner(env={"COLUMNS": "60"}).invoke(heretic, ["doctor"]).output
    assert max(map(len, output.splitlines())) <= 60


# --- the machine -----------------------------------------------------------------------


def test_a_driver_that_torch_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in machine.HIDING:
        monkeypatch.delenv(variable, raising=False)
    driver = tmp_path / "version"
    assert machine.check_accelerator([driver]).state == "note"
    driver.touch()
    monkeypatch.setitem(machine.DRIVERS, driver, ("an NVIDIA driver", "CUDA"))
    found = machine.check_accelerator([driver])
    assert found.state == "note"
    assert "PyTorch for CUDA" in found.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine.check_accelerator([driver])
    assert (found.state, found.remedy) == ("note", "")
    assert "CUDA_VISIBLE_DEVICES" in found.found


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert "OMP_NUM_THREADS" in machine.check_processor().remedy
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in machine.check_processor().remedy


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    assert machine.check_memory([limit]).state == "ok"
    limit.write_text("4000000000\n")
    found = machine.check_memory([limit])
    assert (found.state, "may take 4.0 GB" in found.found) == ("ok", True)
    limit.write_text("1000000000\n")
    assert machine.check_memory([limit]).state == "problem"


def test_a_place_for_runs_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    assert machine.check_runs_folder(tmp_path / "new" / "runs").state == "ok"
    (tmp_path / "file").touch()
    found = machine.check_runs_folder(tmp_path / "file" / "runs")
    assert found.state == "problem"
    assert "study_checkpoint_dir" in found.remedy
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# --- packages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10), "problem"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "note")],
)
def test_releases_of_python(version: tuple[int, int], state: str) -> None:
    assert packages.check_python(version).state == state


@pytest.mark.parametrize(
    ("have", "state"),
    [
        ({"optuna": "5.0.0"}, "ok"),
        ({"optuna": "6.1"}, "problem"),
        ({}, "problem"),
        ({"optuna": "5.0.0", "openai": "1.0"}, "note"),
        ({"optuna": "5.0.0", "pytest": "1.0"}, "ok"),
        ({"optuna": "6.1", "openai": "1.0"}, "problem"),
    ],
)
def test_requirements_are_the_metadatas(have: dict[str, str], state: str) -> None:
    requires = [
        "optuna<6,>=5.0",
        'openai>=2.0; extra == "judge"',
        'pytest>=9.0; extra == "dev"',
        'colorama; sys_platform == "none"',
    ]
    assert check_requirements(requires, have).state == state


def test_what_is_installed_here_meets_the_requirements() -> None:
    assert check_requirements().state in {"ok", "note"}


def test_a_package_of_an_extra_names_the_extra() -> None:
    requires = ['openai>=2.0; sys_platform != "none" and extra == "judge"']
    found = check_requirements(requires, {"openai": "1.0"})
    assert "extra judge" in found.found
    elsewhere = ['openai>=2.0; sys_platform == "none" and extra == "judge"']
    assert check_requirements(elsewhere, {"openai": "1.0"}).state == "ok"


def test_known_failures_are_told_with_their_source() -> None:
    known = KnownFailure("torch", ">=2.7,<2.14", "products", "2.14", "issue 1", "note", "mps")
    have = {"torch": "2.13.0+cpu"}
    (found,) = check_known_failures("mps", [known], have)
    assert (found.state, "issue 1" in found.found) == ("note", True)
    for device, version in (("cpu", "2.13.0"), ("mps", "2.14.0"), ("mps", "2.6.0")):
        (none,) = check_known_failures(device, [known], {"torch": version})
        assert none.state == "ok"


def test_the_table_of_known_failures_can_be_read() -> None:
    for row in packages.known_failures():
        assert row.fails
        assert row.source
        assert row.state in {"note", "problem"}
        assert check_known_failures(row.device, [row], {}) != []


def test_a_cluster_without_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "RAY", "no-such-distribution")
    assert packages.check_ray(settings()).state == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "ray://user:password@host:1")
    found = packages.check_ray(settings())
    assert found.state == "note"
    assert "password" not in f"{found}"


def test_workers_that_could_not_start_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    cluster = {"workers": 2, "ray_address": "head:6379"}
    found = packages.check_ray(settings(**cluster))
    assert found.state == "problem"
    assert "token" in found.found
    assert packages.check_ray(settings(ray_address="head:6379")).state == "problem"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = packages.check_ray(settings(**cluster))
    assert found.state == "ok"
    assert "ray_address names a cluster" in found.found


class TestWhatSettingsNameElsewhere:
    """A storage and a cluster are asked whether they answer."""

    def found(self, **values: Any) -> dict[str, Finding]:
        return {found.name: found for found in check_named(settings(**values))}

    def test_nothing_is_asked_that_is_not_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        assert self.found() == {}

    def test_a_storage_that_does_not_answer(self) -> None:
        pytest.importorskip("psycopg")
        found = self.found(storage="postgresql://me:canary-7f3a9c@127.0.0.1:1/x")["Storage"]
        assert found.state == "problem"
        assert "***@127.0.0.1:1/x does not answer" in found.found
        assert "canary" not in f"{found}"
        assert "password" in found.remedy

    def test_a_storage_that_is_none(self) -> None:
        found = self.found(storage="oracle://host/x")["Storage"]
        assert (found.state, "not the address of a storage" in found.found) == ("problem", True)

    def test_a_file_is_not_made(self, tmp_path: Path) -> None:
        assert self.found(storage=f"sqlite:///{tmp_path}/study.db")["Storage"].state == "ok"
        assert list(tmp_path.iterdir()) == []
        found = self.found(storage=f"sqlite:///{tmp_path}/none/study.db")["Storage"]
        assert (found.state, "none is not there" in found.found) == ("problem", True)

    def test_a_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            assert self.found(workers=1, ray_address=address)["Ray cluster"].state == "ok"
        found = self.found(workers=1, ray_address=address)["Ray cluster"]
        assert found.state == "problem"
        assert f"{address} cannot be joined" in found.found


# --- the Hub ---------------------------------------------------------------------------


def test_without_being_asked_the_hub_hears_nothing(server: Hub) -> None:
    assert check_hub(ask=False).state == "ok"
    assert server.requests == []


@pytest.mark.parametrize(
    ("token", "state", "said"),
    [
        (hub_server.WRITE_TOKEN, "ok", "accepts the stored token"),
        ("hf_wrong", "problem", "does not accept the stored token"),
        (None, "ok", "No token is stored"),
    ],
)
def test_the_hub_answers(
    token: str | None, state: str, said: str, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    found = check_hub(ask=True)
    assert (found.state, said in found.found) == (state, True)
    assert token is None or token not in f"{found}"


def test_a_hub_that_is_not_there(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = check_hub(ask=True, timeout=1.0)
    assert (found.state, "does not answer" in found.found) == ("problem", True)


def test_offline_is_said_and_kept(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = check_hub(ask=True)
    assert (found.state, "Offline mode" in found.found) == ("note", True)
    assert server.requests == []


# --- what would fit --------------------------------------------------------------------


def test_what_fits_in_fewer_bits_fits_where_more_do_not() -> None:
    room = Room(usable=24 * GB, free=10 * GB)
    fits = what_fits(settings(), GPU, room, RATES, "bfloat16")
    found = {(fit.model, fit.format): fit for fit in fits}
    assert found["Qwen3 8B", "bfloat16"].fits
    assert not found["Qwen3 32B", "bfloat16"].fits
    assert found["Qwen3 32B", "4 bits"].fits
    for fit in found.values():
        assert fit.fits == (fit.need.total <= room.usable)
        assert fit.is_free == (fit.need.total <= room.free)
        assert (fit.trial is not None) == (fit.fits and fit.format == "bfloat16")
    assert {fit.is_free for fit in found.values() if fit.fits} == {True, False}
    assert _cell(found["Qwen3 8B", "bfloat16"]).endswith(" *")


def test_a_containers_limit_bounds_what_fits(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    limit = tmp_path / "memory.max"
    cpu = torch.device("cpu")
    whole = room_of(cpu, total_memory(cpu, [limit]))
    assert whole.free <= whole.usable < total
    limit.write_text("3000000000\n")
    found = room_of(cpu, total_memory(cpu, [limit]))
    assert found.free <= found.usable < 3 * GB


def test_time_grows_with_the_model_and_the_reply_and_falls_with_the_rates() -> None:
    large, room = replace(GPU, memory=10**12), Room(10**12, 10**12)
    rows = what_fits(settings(), large, room, RATES, "bfloat16")
    fits = {fit.model: fit for fit in rows if fit.format == "bfloat16"}
    trials = [fit.trial for fit in fits.values()]
    assert trials == sorted(trials, key=lambda seconds: seconds or 0.0)
    shape, need = MODELS["Qwen3 4B"], fits["Qwen3 4B"].need

    def seconds(reply: int = 100, rates: Rates = RATES, on_cpu: bool = False) -> float:
        return trial_seconds(shape, need, rates, reply, on_cpu=on_cpu)

    assert seconds(reply=200) > seconds()
    assert seconds(on_cpu=True) > seconds()
    assert seconds(rates=Rates(2e12, 1e10)) < seconds()


def test_a_trial_that_was_timed() -> None:
    """135M in bfloat16 on two cores, 470 to 700 GFLOP/s: 3.0 to 5.1 s (the lab notes)."""
    device = Device("two cores", 16 * GB, is_cpu=True, itemsize=2)
    rates = Rates(products=585e9, copies=2e10)
    short = settings(max_response_length=40)
    fit = next(what_fits(short, device, Room(16 * GB, 16 * GB), rates, "bfloat16"))
    assert fit.model == "SmolLM2 135M"
    assert fit.trial is not None
    assert 3.0 <= fit.trial <= 5.1


def test_rates_are_measured() -> None:
    found = measure(torch.device("cpu"), torch.float32, seconds=0.01)
    assert found.products > 0
    assert found.copies > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (20, "20 s"), (100, "2 min"), (7200, "2 h"), (10**6, "12 days")],
)
def test_rough_durations(seconds: float, text: str) -> None:
    assert rough(seconds) == text
