"""An Optuna storage behind an address; what is asked of it is repeated while it does not answer."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import optuna
from optuna.storages import BaseStorage

from heretic.errors import StudyError
from heretic.events import Notice, Reporter, Silent
from heretic.search.sampler import quiet
from heretic.search.shared.address import StorageAddress
from heretic.system.display import safe_line
from heretic.system.files import check_writable

PATIENCE = 300.0
"""Seconds for which a storage that does not answer is asked again."""

HURRY = 5.0
"""As `PATIENCE`, once the search is to end."""

_PAUSE = 1.0
_OPENINGS = 5
_CONNECTING = 10
_ANSWERING = 60
_WORDS = 200
_ANSWERS = (
    KeyError,
    ValueError,
    optuna.exceptions.DuplicatedStudyError,
    optuna.exceptions.UpdateFinishedTrialError,
)
"""Errors by which a storage says what it holds."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class StorageAbsentError(StudyError):
    """A storage does not answer."""


class Storage:
    """A storage that may go away and come back.

    Args:
        address: Where it is.
        reporter: Is told when it does not answer.
    """

    def __init__(self, address: StorageAddress, reporter: Reporter) -> None:
        self.address = address
        self.patience = PATIENCE
        self._reporter = reporter
        self._storage: BaseStorage | None = None

    def ask(self, work: Callable[[BaseStorage], T]) -> T:
        """Do something with the storage; again, if it does not answer.

        Args:
            work: Must do no harm when it is done twice, of which the first time may have counted.

        Raises:
            StudyError: It does not answer for as long as `patience`, or refuses.
        """
        since: float | None = None
        while True:
            try:
                with quiet():
                    return self.ask_once(work)
            except Exception as error:
                if isinstance(error, _database_errors()) and not is_absence(error):
                    raise self._refusal(error) from error
                if not is_absence(error):
                    raise
                _log.info("The storage does not answer", exc_info=error)
                now = time.monotonic()
                since = now if since is None else since
                if now - since >= self.patience:
                    raise self.absence(error) from error
                if now == since:
                    self._tell(error)
            time.sleep(min(_PAUSE, self.patience))

    def ask_once(self, work: Callable[[BaseStorage], T]) -> T:
        """Do something with the storage, and connect to it first if need be; also in a thread.

        Raises:
            Exception: Whatever the drivers raise.
        """
        if self._storage is None:
            self._storage = _opened(self.address, self._deadline)
        try:
            return work(self._storage)
        except Exception:
            self._forget_session()
            raise

    def _deadline(self) -> float:
        """Seconds for one call through a proxy: fewer where little patience is left."""
        return min(_ANSWERING, max(self.patience, _CONNECTING))

    def _forget_session(self) -> None:
        """Drop this thread's session: after a lost connection it may want a rollback for good."""
        backend = getattr(self._storage, "_backend", None)
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()

    def close(self) -> None:
        """Leave the storage."""
        storage, self._storage = self._storage, None
        backend = getattr(storage, "_backend", None)
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()
            backend.engine.dispose()
        elif isinstance(storage, optuna.storages.GrpcStorageProxy):
            storage.close()

    def _tell(self, error: Exception) -> None:
        text = (
            f"The storage {self.address.shown} does not answer ({self._reason(error)}); it is "
            f"asked again for {self.patience:.0f} s."
        )
        self._reporter.emit(Notice(text, level="warning"))

    def absence(self, error: Exception) -> StorageAbsentError:
        """The error for a storage that does not answer, without its password."""
        return StorageAbsentError(
            f"The storage {self.address.shown} does not answer: {self._reason(error)}",
            remedy="The run folder holds all trials that are known here. Once the storage answers, "
            "the same command goes on; without --storage this process searches alone.",
        )

    def _refusal(self, error: Exception) -> StudyError:
        return StudyError(
            f"The storage {self.address.shown} refuses what is asked of it: {self._reason(error)}",
            remedy="The run folder holds all trials that are known here; without --storage this "
            "process searches alone.",
        )

    def _reason(self, error: Exception) -> str:
        causes = [error]
        while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
            causes.append(cause)
        # The last cause is the driver's, which says it in its own words.
        return safe_line(self.address.url.mask(_words_of(causes[-1])))[:_WORDS]


def check_answers(address: StorageAddress) -> None:
    """Say that a storage does not answer, or is not Optuna's, before any work.

    Raises:
        StudyError: So it is.
    """
    storage = Storage(address, Silent())
    storage.patience = 0.0
    try:
        storage.ask(lambda one: one.get_study_user_attrs(0))
    except KeyError:
        pass
    finally:
        storage.close()


def check_reachable(address: StorageAddress) -> None:
    """As `check_answers`, without making the tables of a database that has none.

    Raises:
        StorageAbsentError: It does not answer.
        StudyError: It refuses what is asked of it.
    """
    if address.kind == "grpc":
        check_answers(address)
        return
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(address.url.reveal(), **_engine_options(address.kind))
        name = engine.url.database
        if address.kind == "sqlite" and name is not None and not Path(name).exists():
            _check_folder(Path(name).absolute().parent)  # connecting would make the file
            return
        try:
            with engine.connect():
                pass
        finally:
            engine.dispose()
    except Exception as error:  # whatever the drivers raise
        raise Storage(address, Silent()).absence(error) from error


def _check_folder(folder: Path) -> None:
    """Raise if a database cannot be made in a folder.

    Raises:
        RunError: It may not be written to.
        FileNotFoundError: It is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there")
    check_writable(folder)


def _engine_options(kind: str) -> dict[str, Any]:
    """What SQLAlchemy is told of a database: how long it is waited for."""
    options: dict[str, dict[str, Any]] = {
        "sqlite": {"timeout": _ANSWERING},
        "postgresql": {
            "connect_timeout": _CONNECTING,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            # Keepalives are silent while sent data waits to be acknowledged.
            "tcp_user_timeout": 1000 * _ANSWERING,
        },
        "mysql": {
            "connect_timeout": _CONNECTING,
            "read_timeout": _ANSWERING,
            "write_timeout": _ANSWERING,
        },
    }
    return {"pool_pre_ping": True, "connect_args": options[kind]}


def _opened(address: StorageAddress, deadline: Callable[[], float]) -> BaseStorage:
    if address.kind == "grpc":
        from heretic.search.shared.proxy import Proxy

        return Proxy(address.host, address.port, deadline)
    # Optuna fills in braces.
    url = address.url.reveal().replace("{", "{{").replace("}", "}}")
    engine = _engine_options(address.kind)
    for attempt in range(_OPENINGS):
        try:
            return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine))
        except _database_errors() as error:
            # Another process may make the tables at the same moment; of SQLite's errors only the
            # words tell that.
            is_race = not is_absence(error) or "already exists" in str(error)
            if not is_race or attempt == _OPENINGS - 1:
                raise
            time.sleep(_PAUSE * random.random())  # noqa: S311
        except (TypeError, ValueError) as error:  # options of the address that a driver lacks
            raise RuntimeError(str(error)) from error
    raise AssertionError


def is_absence(error: Exception) -> bool:
    """Whether an error says that a storage does not answer now; later it may."""
    from sqlalchemy import exc

    away = (
        exc.OperationalError,
        exc.InterfaceError,
        exc.TimeoutError,
        exc.DisconnectionError,
        exc.PendingRollbackError,  # what a session says whose connection was lost before
    )
    found: BaseException | None = error
    if isinstance(error, _ANSWERS):  # the proxy gives them the error of gRPC as their cause
        return False
    while found is not None:
        if isinstance(found, (*away, ConnectionError)) or _is_of_grpc(found):
            return True
        if isinstance(found, exc.DBAPIError) and found.connection_invalidated:
            return True
        found = found.__cause__
    return False


def _words_of(error: Exception) -> str:
    """What an error says; of gRPC's the two fields that a user can read."""
    if _is_of_grpc(error) and isinstance(error, _Status):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


@runtime_checkable
class _Status(Protocol):
    """An error of gRPC that has a status."""

    def code(self) -> Enum:
        """Its kind."""

    def details(self) -> str | None:
        """Its words."""


def _is_of_grpc(error: BaseException) -> bool:
    return any(kind.__name__ == "RpcError" for kind in type(error).__mro__)


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy import exc

    internal = optuna.exceptions.StorageInternalError
    return (exc.SQLAlchemyError, internal, RuntimeError, ImportError)
