"""Durations as users write them."""

from __future__ import annotations

from typing import Any

import pytest

from heretic.config import Settings, load_settings
from heretic.config.durations import seconds_in
from heretic.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1.5h", 5400),
        ("30 min", 1800),
        ("2H", 7200),
        ("5400", 5400),
        ("0.5", 0.5),
        (" 45s ", 45),
    ],
)
def test_seconds(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


MALFORMED = [
    "0",
    "0m",
    "-5m",
    "m",
    "h30",
    "30m1h",
    "30x",
    "1h30",
    "half an hour",
    "1e3",
    "inf",
    " ",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s, 30m, 2h or 1h30m"):
        seconds_in(text)


@pytest.mark.parametrize(
    ("given", "kept"), [("30m", "30m"), (1800, "1800"), (90.5, "90.5"), ("", None), (None, None)]
)
def test_as_a_setting(given: Any, kept: str | None) -> None:
    assert Settings(model="m", time_limit=given).time_limit == kept


@pytest.mark.parametrize("given", [*MALFORMED, 0, -1, float("nan"), float("inf"), True, [30]])
def test_a_malformed_setting_is_an_error_with_an_example(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"--time-limit.*such as 90s, 30m, 2h or 1h30m"):
        load_settings({"model": "m", "time_limit": given})
