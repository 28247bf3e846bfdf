"""Secrets: kept out of every text that is shown, logged or written.

A `Secret` shows itself as `***` and is known from then on: `masked` finds it in any text, in every
form that servers, libraries and Python's own `repr` give it. What is shown or logged goes through
`masked` once, at the boundary (`heretic.system.display`).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit, urlunsplit

from heretic.system.files import expanded

MASK = "***"

ENVIRONMENT_PREFIX = "HERETIC_"
"""Variables of this name are settings; some are secrets."""

SHORTEST = 8
"""Characters of the shortest secret that is looked for: shorter ones are ordinary words, such as
the keys `none` and `ollama` of servers that need none."""

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_HARMLESS_QUERY = frozenset({"api-version", "api_version", "version"})

_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|pwd|credentials?|authorization|auth|key|bearer|signature"
    r"|cookie|session)s?$|api_?key|access_?token|client_?secret"
)
_OPTION = re.compile(
    r"api_?key$|secret|password|passwd|credential|authorization|(^|_)(access|api|auth|hf|hub)_token$"
)
_SHAPE = re.compile(
    r"(sk|pk|rk|hf|gh[pousr]|glpat|xox[abprs]|key|token|secret)[-_]\S{8,}|AKIA\w{12,}|eyJ\S{20,}"
    r"|(Bearer|Basic) \S+"
)
_USER_INFO = re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)")
_QUERY = re.compile(
    r"([?&](?:[\w.-]*[_.-])?(?:token|secret|password|passwd|key|apikey|auth|authorization"
    r"|signature|sig|code)=)[^&\s\"'#<>\\]+",
    re.IGNORECASE,
)

_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}

_known: set[str] = set()


class Secret:
    """A text that is never shown. Making one lets `masked` find it in all texts from then on.

    Args:
        is_harmless: Nothing is in it that must be hidden, such as in an address without a password:
            `masked` leaves it as it is.
    """

    __slots__ = ("_is_harmless", "_text")

    def __init__(self, text: str, *, is_harmless: bool = False) -> None:
        self._text = text
        self._is_harmless = is_harmless
        if not is_harmless:
            register(text)

    def reveal(self) -> str:
        """The text itself, for the one who needs it."""
        return self._text

    def mask(self, text: str) -> str:
        """`text`, such as an error, without this secret, even if it is too short for `masked`."""
        is_sought = self._text and not self._is_harmless
        return masked(text.replace(self._text, MASK) if is_sought else text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK


def register(text: str) -> None:
    """Let `masked` find a secret from now on, if it is long enough to be one."""
    text = text.strip()
    if len(text) >= SHORTEST and text not in _known:
        _known.add(text)
        _pattern.cache_clear()


def masked(text: str) -> str:
    """`text` with every known secret, and every password in an address, replaced by `***`.

    Known are all instances of `Secret`, and the Hub's token, wherever the Hub's client finds it.
    """
    pattern = _pattern(_hub_tokens())
    if pattern is not None:
        text = pattern.sub(MASK, text)
    if "://" in text:
        text = _USER_INFO.sub(MASK, text)
    if "=" in text:
        text = _QUERY.sub(rf"\1{MASK}", text)
    return text


def masked_address(address: str) -> str:
    """An address without user, password, keys in its path, and the values of its query.

    `api-version` stays.
    """
    return _address_parts(address)[0]


def masked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a scorer, as they may be written down.

    Masked are passwords and queries of addresses, and texts that are secret by their name, in
    `extra_body` also by their form. What comes out depends on nothing but the options, so it can
    identify a run.
    """
    return _split_options(options)[0]


def register_options(options: Mapping[str, Any]) -> None:
    """Let `masked` find from now on what `masked_options` masks."""
    for secret in _split_options(options)[1]:
        for form in (secret, unquote_plus(secret), secret.rpartition(" ")[2]):  # "Bearer ..."
            register(form)


def register_address(address: str) -> None:
    """Let `masked` find from now on the password in an address, also apart from it."""
    # To the last @: a password that was not escaped may hold one.
    in_front = re.search(r"://[^:@/]*:(.+)@", address.partition("?")[0])
    in_front = in_front or re.search(r"://[^:@/]*:([^@]+)@", address)  # with a ? in it
    found = [in_front[1]] if in_front else []
    for field in address.partition("?")[2].split("&"):
        name, _, value = field.partition("=")
        if _NAME.search(_snake(name)):
            found.append(value)
    for secret in found:
        for form in (secret, unquote(secret), unquote_plus(secret)):
            register(form)


def _split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options as they may be written down, and what was masked in them."""
    kept: dict[str, Any] = {}
    secrets: list[str] = []
    for name, value in options.items():
        kept[name] = value
        if name == "extra_body":
            kept[name] = _masked_body(value, "", secrets)
        elif name == "endpoint" and isinstance(value, str):
            kept[name], found = _address_parts(value)
            secrets += found
        elif isinstance(value, str) and value and _OPTION.search(_snake(name)):
            kept[name] = MASK
            secrets.append(value)
    return kept, secrets


def _masked_body(value: Any, name: str, secrets: list[str]) -> Any:
    """Fields of a request without those that are secret, which are added to `secrets`."""
    if isinstance(value, Mapping):
        return {key: _masked_body(inner, str(key), secrets) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_body(inner, name, secrets) for inner in value]
    number = isinstance(value, int) and len(str(value)) >= SHORTEST
    if value and (isinstance(value, str) or number):
        text = str(value)
        if _NAME.search(_snake(name)) or _SHAPE.search(text):
            secrets.append(text)
            return MASK
    return value


def _address_parts(address: str) -> tuple[str, list[str]]:
    """An address as it may be written down, and what was masked in it."""
    try:
        parts = urlsplit(address)
    except ValueError:  # not an address; whoever uses it will say so
        return MASK, [address]
    user, at, host = parts.netloc.rpartition("@")
    secrets = [text for text in user.split(":") if text]
    fields = []
    for field in parts.query.split("&"):
        name, equals, value = field.partition("=")
        if value and name.lower() not in _HARMLESS_QUERY:
            secrets.append(value)
            fields.append(f"{name}={MASK}")
        elif field and not equals:  # no name: all of it may be a key
            secrets.append(field)
            fields.append(MASK)
        else:
            fields.append(field)
    path = parts.path
    for segment in re.split(r"[/;=]", path):  # as gateways have it: /sk-.../v1
        # With a digit: `hf-inference` is no token.
        if _SHAPE.match(segment) and re.search(r"\d", segment):
            secrets.append(segment)
            path = path.replace(segment, MASK)
    if not secrets and not parts.fragment:
        return address, []
    netloc = f"{MASK}@{host}" if at else host
    shown = urlunsplit((parts.scheme, netloc, path, "&".join(fields), ""))
    return shown, [*secrets, *([parts.fragment] if parts.fragment else [])]


def _snake(name: str) -> str:
    """`accessToken` and `X-Api-Key` as `access_token` and `x_api_key`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _hub_tokens() -> tuple[str, ...]:
    found = [os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES]
    return tuple(token for token in (*found, _stored_hub_token()) if len(token) >= SHORTEST)


@cache
def _stored_hub_token() -> str:
    """The token that `hf auth login` stored; empty without one."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or cache_folder / "huggingface")
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        return expanded(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return ""


@cache
def _pattern(hub_tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds all known secrets, the longest first; None if there are none."""
    secrets = sorted({*_known, *hub_tokens}, key=len, reverse=True)
    forms = [form for secret in secrets for form in (_spelled(secret), *_encoded(secret))]
    return re.compile("|".join(forms), re.IGNORECASE) if forms else None  # servers fold case


def _spelled(secret: str) -> str:
    """A pattern of a secret as text, in whatever way and however often it was quoted."""
    return "".join(map(_character, secret))


def _character(character: str) -> str:
    """A pattern of one character: itself, or escaped as in Python, JSON, addresses and HTML.

    A text that was quoted twice has its backslashes doubled and `%25` for `%`.
    """
    if character.isascii() and character.isalnum():
        return character
    data = character.encode("utf-8", "surrogatepass")
    units = character.encode("utf-16-be", "surrogatepass")
    pairs = [units[start : start + 2].hex() for start in range(0, len(units), 2)]
    code = ord(character)
    forms = [
        rf"\\*{re.escape(character)}" if character != "\\" else r"\\+",
        "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in data),
        "".join(rf"\\+x(?i:{byte:02x})" for byte in data),
        "".join(rf"\\+u(?i:{pair})" for pair in pairs),
        rf"\\+U(?i:{code:08x})",
        rf"&(?:amp;)*#(?:0*{code}|(?i:x0*{code:x}));",
    ]
    if code < 256:
        forms.append(rf"\\+x(?i:{code:02x})")
    if character in _ENTITIES:
        forms.append(f"&(?:amp;)*{_ENTITIES[character]};")
    if character == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _encoded(secret: str) -> Iterator[str]:
    """Patterns of what every base64 or hexadecimal text that holds the secret has in common."""
    data = secret.encode("utf-8", "surrogatepass")
    yield f"(?i:{data.hex()})"
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + data).decode()
        inner = text.rstrip("=")[(0, 2, 3)[shift] :]
        # The last character also depends on the byte that follows.
        whole = inner if (len(data) + shift) % 3 == 0 else inner[:-1]
        if len(whole) >= SHORTEST:
            yield whole.replace("+", r"[+\-]").replace("/", "[/_]")
