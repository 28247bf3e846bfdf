"""Addresses, what may be shown of them, and a storage behind Optuna's gRPC proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from tests.support.postgres import PASSWORD, URL_PASSWORD, free_port
from tests.support.search_case import OUTSIDE, evaluate
from tests.support.shared_case import NAME, hastened, shared

from heretic.config.settings import Settings
from heretic.errors import SettingsError, StudyError
from heretic.events import Silent
from heretic.runs.folder import RunFolder
from heretic.search.shared import storage as storage_module
from heretic.search.shared.address import storage_address
from heretic.search.shared.beginning import _PIECE, await_or_claim, publish
from heretic.search.shared.remote import connected
from heretic.search.shared.storage import check_answers
from heretic.system.secrets import masked, register_address


@pytest.mark.parametrize(
    ("text", "kind", "url"),
    [
        ("postgres://u:p@h/d", "postgresql", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://h/d?sslmode=require", "postgresql", "postgresql+psycopg://h/d?sslmode="),
        ("mysql://u:p@h:3306/d", "mysql", "mysql+pymysql://u:p@h:3306/d"),
        ("mariadb://h/d", "mysql", "mysql+pymysql://h/d"),
        ("sqlite:///study.db", "sqlite", "sqlite:///study.db"),
        ("grpc://h:13000", "grpc", "grpc://h:13000"),
    ],
)
def test_addresses_name_a_kind_and_its_driver(text: str, kind: str, url: str):
    found = storage_address(text)
    assert found.kind == kind
    assert found.url.reveal().startswith(url)
    assert "u:p" not in f"{found}"


@pytest.mark.parametrize(
    "text", ["", "study.db", "oracle://h/d", "sqlite://", "sqlite:///:memory:", "grpc://h/d"]
)
def test_other_addresses_are_refused(text: str):
    with pytest.raises(SettingsError, match=r"^storage (is not|names)"):
        storage_address(text)


@pytest.mark.parametrize("sign", ["/", "?", "#", "@", "@x:y"])
def test_signs_that_are_not_escaped_are_refused_and_not_shown(sign: str):
    """A part of the password would pass for the host, the port or the path, and be shown."""
    address = f"postgresql://me:se{sign}cret@127.0.0.1:1/db"
    with pytest.raises(SettingsError, match="must be escaped") as caught:
        storage_address(address)
    assert "cret" not in str(caught.value)
    assert "cret" not in repr(Settings(model="x", storage=address))
    escaped = f"postgresql://me:{quote(f'se{sign}cret', safe='')}@127.0.0.1:1/db"
    assert storage_address(escaped).shown == "postgresql://***@127.0.0.1:1/db"


def test_an_option_that_a_driver_lacks_is_said():
    pytest.importorskip("pymysql")
    with pytest.raises(StudyError, match=r"refuses what is asked of it: .*'bogus'"):
        check_answers(storage_address("mysql://host/d?bogus=1"))


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://me:{URL_PASSWORD}@host/d",
        f"postgresql://me:{PASSWORD}@host/d",  # not escaped, as it should be
        f"postgresql://me:?{PASSWORD.removesuffix('@:x')}@host/d",
        f"mysql://host/d?user=me&password={URL_PASSWORD}",
    ],
)
def test_a_password_is_masked_wherever_it_is_said(address: str):
    register_address(address)
    for said in (address, f"no password {PASSWORD!r}", f"password={URL_PASSWORD} failed"):
        assert "canary" not in masked(said)
    assert "postgresql" in masked("postgresql")


@contextmanager
def served(storage: optuna.storages.BaseStorage) -> Iterator[str]:
    """Optuna's proxy before a storage."""
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    port = free_port()
    server = make_server(storage, "127.0.0.1", port)
    server.start()
    with hastened():
        yield f"grpc://127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    "address",
    ["sqlite:////no/such/folder/study.db", "grpc://127.0.0.1:1", "postgresql://127.0.0.1:1/mine"],
)
def test_an_address_without_a_password_is_shown(address: str):
    if not address.startswith("sqlite"):
        pytest.importorskip("grpc" if address.startswith("grpc") else "psycopg")
    found = storage_address(address)
    with pytest.raises(StudyError) as caught:
        check_answers(found)
    assert f"The storage {address} does not answer" in masked(str(caught.value))
    assert masked(f"storage = {address}") == f"storage = {address}"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """A proxy before a database of its own."""
    with served(optuna.storages.get_storage(f"sqlite:///{tmp_path / 'behind.db'}")) as url:
        yield url


def test_a_search_through_a_proxy(proxy: str, tmp_path: Path):
    large = bytes(range(256)) * (5 * 2**20 // 256)  # above what gRPC takes as one message
    check_answers(storage_address(proxy))
    with connected(proxy, NAME, Silent()) as remote:
        claim = await_or_claim(remote, pytest.fail)
        assert isinstance(claim, int)
        publish(remote, claim, {"run": 1}, {"directions.safetensors": large, "sweep.json": b""})
    with connected(proxy, NAME, Silent()) as remote:
        found = await_or_claim(remote, pytest.fail)
        assert not isinstance(found, int)
        assert found.file("directions.safetensors") == large
        assert found.file("sweep.json") == b""
        found.trial.user_attrs["directions.safetensors/1"] = "AAAA"
        with pytest.raises(StudyError, match="does not have its digest"):
            found.file("directions.safetensors")
    assert len(large) > 2 * _PIECE
    with shared(proxy, tmp_path / "a", start_plans=OUTSIDE[:1]) as (study, _):
        first = study.run(evaluate, 2)
    with shared(proxy, tmp_path / "b", start_plans=OUTSIDE[:1]) as (study, _):
        assert study.run(evaluate, 3)[:2] == first
    assert len(RunFolder(tmp_path / "b").read_trials()) == 3


class Hanging(optuna.storages.InMemoryStorage):
    """A storage that takes questions, and may leave them without an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = Event()
        self.answers.set()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith(("get_", "set_", "create_")):
            super().__getattribute__("answers").wait()
        return found


class TestProxyThatHangs:
    """It holds its connections, and answers nothing more."""

    @pytest.fixture(autouse=True)
    def seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_module, "_CONNECTING", 0.5)
        monkeypatch.setattr(storage_module, "_ANSWERING", 0.5)

    @pytest.fixture
    def behind(self) -> Iterator[Hanging]:
        made = Hanging()
        yield made
        made.answers.set()

    def test_it_is_said_before_any_work(self, behind: Hanging):
        behind.answers.clear()
        with served(behind) as url, pytest.raises(StudyError) as caught:
            check_answers(storage_address(url))
        assert f"{url} does not answer: DEADLINE_EXCEEDED" in str(caught.value)

    def test_a_search_ends_with_an_error_that_names_it_and_goes_on_later(
        self, behind: Hanging, tmp_path: Path
    ):
        def deserted(plans):
            if study.completed == 2:
                behind.answers.clear()
            return evaluate(plans)

        with served(behind) as url:
            with (
                pytest.raises(StudyError, match=f"{url} does not answer"),
                hastened(patience=1.0),
                shared(url, tmp_path / "a") as (study, _),
            ):
                study.run(deserted, 6)
            behind.answers.set()
            kept = RunFolder(tmp_path / "a").read_trials()
            assert [one.state for one in kept] == ["complete"] * 3
            with hastened(), shared(url, tmp_path / "a") as (study, _):
                assert study.run(evaluate, 4)[:3] == kept
