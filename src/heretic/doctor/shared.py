"""Checks of what settings name elsewhere: the Ray cluster and the storage of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from heretic.doctor.finding import Finding
from heretic.errors import HereticError

if TYPE_CHECKING:
    from heretic.config.settings import Settings

_SERVER = "Is the server up, and are host, port, user and password right?"


def check_named(settings: Settings) -> Iterator[Finding]:
    """Whether the cluster and the storage answer that the settings name; nothing else is asked.

    It takes some seconds at most, and leaves nothing behind there.
    """
    if settings.ray_address is not None and settings.workers:
        yield _found("Ray cluster", lambda: _look_at_cluster(settings))
    if settings.storage is not None:
        yield _found("Storage", lambda: _look_at_storage(settings))


def _found(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except HereticError as error:
        return Finding(name, "problem", error.message, error.remedy or "")


def _look_at_cluster(settings: Settings) -> str:
    from heretic.cluster.ray_start import check_address, check_reachable

    address = settings.ray_address or ""
    check_address(address, allow_unauthenticated=settings.allow_unauthenticated)
    check_reachable(address)
    return "Something listens there; whether it lets this process in shows when a search joins it."


def _look_at_storage(settings: Settings) -> str:
    from heretic.search.shared.address import check_driver, storage_address
    from heretic.search.shared.storage import StorageAbsentError, check_reachable

    address = storage_address(settings.storage or "")
    check_driver(address)
    try:
        check_reachable(address)
    except StorageAbsentError as error:  # its remedy is for a run that has begun
        raise StorageAbsentError(error.message, remedy=_SERVER) from error
    return f"{address.shown} can be used."
