"""Without a home folder, a `~` stays what it is and is missed like any other path."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.errors import HereticError
from heretic.main import run
from heretic.system.files import expanded, user_cache

NOBODY = "~no-such-user-here"


def test_a_known_home_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert expanded("~/a") == tmp_path / "a"
    assert user_cache() == tmp_path / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert user_cache() == Path("/elsewhere")


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)  # as for a user that a container made up
    assert expanded("~/a") == Path("~/a")
    with pytest.raises(HereticError, match="Set HOME or XDG_CACHE_HOME"):
        user_cache()


@pytest.mark.parametrize(
    "options",
    [
        [f"{NOBODY}/m"],
        ["m", "--preset", f"{NOBODY}/x.toml"],
        ["m", "--behavior", f"{NOBODY}/x"],
        ["m", "--config", f"{NOBODY}/x.toml"],
        ["m", "--save-directory", f"{NOBODY}/x"],
        ["m", "--start-plans", f"{NOBODY}/x"],
    ],
)
def test_paths_of_unknown_users_are_one_line(options: list[str]):
    with pytest.raises(HereticError) as error:
        run(["inspect", *options])
    assert "\n" not in str(error.value)
    assert NOBODY in str(error.value)
