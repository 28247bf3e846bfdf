"""Who may use the page: the token of this start, and the hosts by whose name it is asked."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import urlsplit

from heretic.system.secrets import register

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "token"  # noqa: S105 - the name of the parameter


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must bring.

    Attributes:
        port: Of the server. Cookies are shared by all ports of a host, so their name holds it.
        hosts: Names and addresses, in lower case, without ports and brackets.
        proxied: Those of them before which a proxy may stand that encrypts.
        token: What the printed address carries.
        session: What the cookie carries, so that no cookie tells the token.
    """

    port: int
    hosts: frozenset[str] = frozenset(LOOPBACK)
    proxied: frozenset[str] = frozenset()
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __post_init__(self) -> None:
        register(self.token)  # no log and no run folder may hold it
        register(self.session)

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        return f"heretic-{self.port}"

    def address(self, host: str) -> str:
        """What the user opens: the page's address with the token."""
        shown = LOOPBACK[0] if is_any(host) else host
        return f"http://{bracketed(shown)}:{self.port}/?{TOKEN}={self.token}"

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        return compare_digest(given.encode(errors="surrogateescape"), self.token.encode())

    def is_session(self, given: str) -> bool:
        """Whether it is the content of the cookie; as `is_token`."""
        return compare_digest(given.encode(errors="surrogateescape"), self.session.encode())

    def knows_host(self, header: str) -> bool:
        """Whether the page may be asked by this `Host`, whatever its port.

        A name that an attacker lets resolve to loopback is not among them.
        """
        return host_of(f"//{header}") in self.hosts

    def may_be_encrypted(self, header: str) -> bool:
        """Whether a page of this `Host` may have come by https: this server has none of its own."""
        return host_of(f"//{header}") in self.proxied


def hosts_for(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """The hosts by which a server is asked that listens on `host`: loopback, `host`, and more."""
    own = () if is_any(host) else (host,)
    return frozenset((*LOOPBACK, *map(_plain, (*own, *more))))


def proxied_of(named: Iterable[str]) -> frozenset[str]:
    """The hosts that were named for a proxy; loopback is asked without one."""
    return frozenset(name for name in map(_plain, named) if not is_loopback(name))


def _plain(host: str) -> str:
    return host.lower().strip("[]")


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bracketed(host: str) -> str:
    """A host as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def host_of(address: str) -> str | None:
    """The host of an address in lower case; None if it has none, or is malformed."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname
