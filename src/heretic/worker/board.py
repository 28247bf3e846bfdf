"""The worker's state, told whenever it changes."""

from __future__ import annotations

from dataclasses import asdict, replace
from threading import Lock
from typing import Any

from heretic.worker.inbox import Inbox
from heretic.worker.protocol import State
from heretic.worker.wire import Messages


class Board:
    """Any thread may change the state."""

    def __init__(self, inbox: Inbox, messages: Messages) -> None:
        self._inbox, self._messages = inbox, messages
        self._lock = Lock()
        self.state = State(state="starting")

    def say(self, **changes: Any) -> None:
        """Tell the state, if it is another now."""
        with self._lock:
            asked, waiting = self._inbox.asked, self._inbox.waiting
            state = replace(self.state, **changes, asked=asked, waiting=waiting)
            if state != self.state:
                self.state = state
                self._messages.say("state", asdict(state))
