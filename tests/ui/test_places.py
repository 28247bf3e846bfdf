from __future__ import annotations

from pathlib import Path

import pytest

from heretic.errors import HereticError
from heretic.ui.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    inside = tmp_path / "inside"
    (inside / "b").mkdir(parents=True)
    (inside / "a.txt").write_text("x")
    (inside / ".hidden").write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    (inside / "away").symlink_to(outside)
    (inside / "secret").symlink_to(outside / "secret")
    (inside / "circle").symlink_to(inside / "circle")
    (inside / "back").symlink_to(inside / "b")
    return Places.of([inside])


def test_a_folder_is_listed_without_what_leads_out(places: Places):
    (root,) = places.roots
    found = places.entries(root)
    names = [(entry.name, entry.is_folder) for entry in found]
    assert names == [("b", True), ("back", True), ("a.txt", False)]
    assert next(entry for entry in found if entry.name == "back").path == root / "b"


@pytest.mark.parametrize(
    "named",
    ["..", "b/../..", "../outside", "away", "away/secret", "secret", "/etc/passwd", "b\0", "~"],
)
def test_what_lies_elsewhere_is_refused(places: Places, named: str):
    (root,) = places.roots
    path = named if named.startswith(("/", "~")) else f"{root}/{named}"
    with pytest.raises(HereticError, match="not in a folder"):
        places.checked(path)
    with pytest.raises(HereticError):
        places.entries(path)


def test_a_folder_with_a_like_name_is_elsewhere(places: Places):
    (root,) = places.roots
    with pytest.raises(HereticError):
        places.checked(f"{root}-2/x")
    assert places.checked(root / "new" / "folder") == root / "new" / "folder"


def test_the_way_up_ends_at_the_root(places: Places):
    (root,) = places.roots
    assert places.parent(root / "b") == root
    assert places.parent(root) is None
