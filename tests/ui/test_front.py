"""The table of the front, without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("nicegui")

from nicegui import Client, core, ui
from nicegui.element import Element

from heretic.ui.pages.front import FrontRows
from heretic.ui.views import FrontRow, FrontTable


def front(*numbers: int) -> FrontTable:
    rows = tuple(FrontRow(number, f"trial {number}", ("1",)) for number in numbers)
    return FrontTable(("score",), ("0",), rows, 0, {})


def numbers_of(client: Client) -> list[tuple[Element, Any]]:
    """The buttons of the rows, with the numbers that a browser gets."""
    buttons = [one for one in client.elements.values() if one.tag == "button"]
    return [(one, one.props["data-number"]) for one in buttons]


def click(button: Element, number: Any) -> None:
    """What a browser tells of a click on a button that shows this number."""
    (listener,) = (one["listener_id"] for one in button._to_dict()["events"])
    button._handle_event({"listener_id": listener, "args": number})


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(ui.page("/"), request=None)
    yield made
    made.delete()


def test_a_click_chooses_the_trial_that_the_browser_shows(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    async def choose(number: int) -> None:
        chosen.append(number)

    async def work() -> None:
        monkeypatch.setattr(core, "loop", asyncio.get_running_loop())
        with client:
            rows = FrontRows(choose)
        rows.show(front(3, 5))
        shown = numbers_of(client)
        assert [number for _, number in shown] == [3, 5]
        rows.show(front(7, 3))  # the rows are used again, and a click is on its way
        assert [number for _, number in numbers_of(client)] == [7, 3]
        for button, number in shown:
            click(button, number)
        click(shown[0][0], "no number")
        await asyncio.sleep(0.01)

    asyncio.run(work())
    assert chosen == [3, 5]
