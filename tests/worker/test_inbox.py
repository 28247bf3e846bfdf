"""What stops, pauses and cancels are about, whenever they come."""

from __future__ import annotations

import threading

import pytest

from heretic.errors import RunError
from heretic.worker.inbox import CancelledError, Inbox
from heretic.worker.protocol import (
    Cancel,
    Front,
    Open,
    Pause,
    Quit,
    Resume,
    Search,
    Stop,
)


@pytest.mark.parametrize("control", [Pause(), Resume(), Stop()])
def test_without_a_search_there_is_nothing_to_control(control) -> None:
    inbox = Inbox()
    inbox.put(1, Front())
    with pytest.raises(RunError, match="No search"):
        inbox.control(control)
    assert inbox.asked is None


def test_a_stop_that_comes_before_its_search_ends_it() -> None:
    inbox = Inbox()
    inbox.put(1, Front())
    inbox.put(2, search := Search())
    assert inbox.take() == (1, Front())
    inbox.control(Stop())
    inbox.done()
    assert inbox.take() == (2, search)
    inbox.searching(search)
    assert inbox.ends_search
    inbox.searching(None)
    assert not inbox.ends_search


def test_a_stop_while_a_run_is_opened_ends_the_opening_alone() -> None:
    inbox = Inbox()
    inbox.put(1, Open(run="one"))
    inbox.take()
    inbox.check()
    inbox.control(Stop())
    with pytest.raises(CancelledError):
        inbox.check()
    inbox.done()
    inbox.put(2, Open(run="one"))
    inbox.take()
    inbox.check()


def test_a_cancel_is_about_one_request_whether_it_waits_or_not() -> None:
    inbox = Inbox()
    for number in (1, 2, 3):
        inbox.put(number, Front())
    inbox.control(Cancel(request=2))
    given_up = []
    for _ in range(3):
        inbox.take()
        given_up.append(inbox.is_cancelled)
        inbox.done()
    assert given_up == [False, True, False]


def test_a_pause_lasts_until_something_comes() -> None:
    inbox = Inbox()
    inbox.searching(Search())
    inbox.control(Pause())
    for ending in (lambda: inbox.put(1, Front()), lambda: inbox.control(Resume())):
        waiting = threading.Thread(target=inbox.until_it_goes_on)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        ending()
        waiting.join(20)
        assert not waiting.is_alive()
        inbox.take_at_once()
        inbox.done()


def test_a_signal_ends_a_search_that_was_to_stop_and_what_comes_after_it() -> None:
    inbox = Inbox()
    inbox.searching(Search())
    inbox.control(Stop())
    inbox.end_now()
    inbox.searching(None)
    inbox.put(1, Front())
    assert inbox.take() is None


@pytest.mark.parametrize("is_eof", [False, True])
def test_the_end_ends_everything(is_eof: bool) -> None:
    inbox = Inbox()
    inbox.put(1, Open(run="one"))
    inbox.put(2, Front())
    inbox.take()
    inbox.close() if is_eof else inbox.control(Quit())
    assert inbox.is_cancelled  # the opening
    assert inbox.ends_search
    inbox.done()
    assert inbox.take() is None
    assert inbox.rest() == [2]
    assert inbox.is_unheard == is_eof
