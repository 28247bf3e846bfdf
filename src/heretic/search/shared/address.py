"""Addresses of storages: which there are, what each needs, and how each may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from heretic.errors import SettingsError
from heretic.system.optional import require
from heretic.system.secrets import Secret, masked_address

_DRIVERS = {
    "sqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mysql+pymysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}
"""Schemes, and the dialect and driver that SQLAlchemy is asked for."""

_SERVER = re.compile(r"([^@/?#]*@)?(\[[^@/?#\]]*\]|[^@/?#:\[\]]*)(:[0-9]*)?([/?][^@#]*)?")
"""What follows the scheme of a database's server. Signs that are not escaped would make a part of a
password pass for the host or the port, which errors name."""

_MODULES = {"postgresql": "psycopg", "mysql": "pymysql", "grpc": "grpc"}
_FORMS = (
    "It should be postgresql://USER:PASSWORD@HOST/DATABASE, mysql://USER:PASSWORD@HOST/DATABASE, "
    "sqlite:////PATH or grpc://HOST:PORT."
)


@dataclass(frozen=True, slots=True)
class StorageAddress:
    """Where a storage is.

    Attributes:
        kind: `sqlite`, `postgresql`, `mysql` or `grpc`.
        url: For SQLAlchemy; with the password.
        shown: The address as it may be shown.
        host: Of a gRPC proxy.
        port: Of a gRPC proxy.
    """

    kind: str
    url: Secret = field(repr=False)
    shown: str
    host: str = ""
    port: int = 0


def storage_address(text: str) -> StorageAddress:
    """Read an address.

    Raises:
        SettingsError: It is none, or of a storage that is not known. The error does not quote it.
    """
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not separator or not (scheme == "grpc" or scheme in _DRIVERS):
        raise SettingsError("storage is not the address of a storage that is known.", remedy=_FORMS)
    if scheme == "grpc":
        return _proxy(text.strip())
    driver = _DRIVERS[scheme]
    kind = driver.partition("+")[0]
    if kind == "sqlite" and re.fullmatch(r"/?(:memory:)?(\?.*)?", rest):
        raise SettingsError(
            "storage names a SQLite database in memory, which no other process sees.",
            remedy="Name a file, such as sqlite:///study.db.",
        )
    if kind != "sqlite" and not _SERVER.fullmatch(rest):
        raise SettingsError(
            "storage has signs that must be escaped, or a port that is no number.",
            remedy="Write / as %2F, : as %3A, ? as %3F, # as %23, @ as %40 in user, password and "
            f"options. {_FORMS}",
        )
    given = f"{scheme}://{rest}"
    shown = masked_address(given)
    return StorageAddress(kind, Secret(f"{driver}://{rest}", is_harmless=shown == given), shown)


def _proxy(text: str) -> StorageAddress:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.username or parts.path.strip("/") or parts.query:
        raise SettingsError("storage is not the address of a gRPC proxy.", remedy=_FORMS)
    url = Secret(text, is_harmless=True)  # it has no place for a password
    return StorageAddress("grpc", url, f"grpc://{host}:{port}", host, port)


def check_driver(address: StorageAddress) -> None:
    """Say that the package is missing that speaks to a storage.

    Raises:
        SettingsError: It is.
    """
    module = _MODULES.get(address.kind)
    if module is not None:
        purpose = f"The storage {address.shown}"
        require(module, extra="storage", purpose=purpose, kind=SettingsError)
