"""Check of the Hub: login, offline mode and, when asked, whether it answers."""

from __future__ import annotations

from urllib.parse import urlsplit

from heretic.doctor.finding import Finding

TIMEOUT = 5.0
"""Seconds that the Hub has for its answer."""

UNAUTHORISED = 401
_LOGIN = "Log in anew: hf auth login"
_NETWORK = "Check the network and its proxy (HTTPS_PROXY); HF_HUB_OFFLINE=1 works without the Hub."


def check_hub(*, ask: bool, timeout: float = TIMEOUT) -> Finding:
    """Whether somebody is logged in, and whether the Hub answers.

    The token is sent to the Hub alone, and shown nowhere.

    Args:
        ask: Whether to ask the Hub; without it nothing is sent.
        timeout: Seconds for its answer.
    """
    from huggingface_hub import constants, get_token

    name, token = "Hub", get_token()
    login = "A token is stored" if token else "No token is stored"
    host = urlsplit(constants.ENDPOINT).hostname or "the Hub"
    if constants.HF_HUB_OFFLINE:
        return Finding(
            name, "note", f"{login}. Offline mode (HF_HUB_OFFLINE): {host} is never asked."
        )
    if not ask:
        remedy = "" if token else "For gated models: hf auth login"
        return Finding(name, "ok", f"{login}. {host} was not asked (--hub asks).", remedy)
    return _asked(name, token, login, host, timeout)


def _asked(name: str, token: str | None, login: str, host: str, timeout: float) -> Finding:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        reply = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2",
            headers=build_hf_headers(token=token or False),
            timeout=timeout,
        )
    except Exception as error:  # whatever the connection failed by
        said = f"{login}. {host} does not answer: {type(error).__name__}."
        return Finding(name, "problem", said, _NETWORK)
    if reply.status_code == UNAUTHORISED and token:
        return Finding(name, "problem", f"{host} does not accept the stored token.", _LOGIN)
    if reply.status_code == UNAUTHORISED:
        said = f"{login}. {host} answers."
        return Finding(name, "ok", said, "For gated models: hf auth login")
    if reply.is_error:
        said = f"{login}. {host} answers with status {reply.status_code}."
        return Finding(name, "problem", said, _NETWORK)
    return Finding(name, "ok", f"{host} answers, and accepts the stored token.")
