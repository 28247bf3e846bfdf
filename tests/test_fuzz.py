"""Whatever is read, nothing but `HereticError` comes out: a few inputs of every kind.

`make soak` gives a million of them.
"""

from __future__ import annotations

import pytest

from tests.soak.fuzz import TARGETS, fuzz

SLOW = {"command lines", "run folders", "loaded models", "inspected models", "replies"}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_errors_that_a_user_can_fix_comes_out(name: str):
    fuzz(name, 20 if name in SLOW else 100)


def test_another_error_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("heretic.pipeline.read_plans", lambda path: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        fuzz("plans", 100)


def test_shares_make_up_the_whole():
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1)
