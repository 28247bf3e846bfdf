"""Plans that name a fit: without it, or with another one, nothing is edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support import export_case, tiny

from heretic.errors import RunError
from heretic.method.fits import Fit
from heretic.model import Model
from heretic.model.fits import read_fits
from heretic.records.plan import fit_file

FIT, PLAN = export_case.fit(), export_case.fitted_plan()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(export_case.settings(tiny.folder(tmp_path_factory.mktemp("model"))))


def put(folder: Path, content: bytes) -> Path:
    path = folder / fit_file(FIT.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return folder


def test_a_plan_without_its_fit_is_refused(bare: Model) -> None:
    with pytest.raises(RunError, match=FIT.digest):
        bare.plan_edits(PLAN, export_case.directions())


def test_a_fit_of_another_model_is_refused(bare: Model) -> None:
    other = Fit(FIT.components, FIT.write[:, :, :2].clone(), FIT.read[:, :, :2].clone())
    with pytest.raises(RunError, match=r"2 layers of width 32; this one has 3"):
        bare.add_fits([other])


def test_it_is_read_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    there = put(tmp_path / "there", FIT.content())
    [found] = read_fits([PLAN, PLAN], tmp_path / "nowhere", there)
    assert found.digest == FIT.digest
    assert read_fits([export_case.plan()], tmp_path / "nowhere") == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=FIT.digest) as caught:
        read_fits([PLAN], tmp_path)
    assert caught.value.remedy is not None
    assert "run folder" in caught.value.remedy


def test_another_fit_under_its_name_is_refused(tmp_path: Path) -> None:
    other = Fit(FIT.components, FIT.read, FIT.write)
    with pytest.raises(RunError, match=f"holds the fit {other.digest}"):
        read_fits([PLAN], put(tmp_path, other.content()))


@pytest.mark.parametrize("damage", ["cut", "changed", "folder"])
def test_a_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    content = bytearray(FIT.content())
    content[-5] ^= 1
    folder = put(tmp_path, bytes(content[:-1] if damage == "cut" else content))
    if damage == "folder":
        (folder / fit_file(FIT.digest)).unlink()
        (folder / fit_file(FIT.digest)).mkdir()
    with pytest.raises(RunError, match=FIT.digest):
        read_fits([PLAN], folder)


def test_in_place_and_hooked_are_the_same(bare: Model) -> None:
    bare.add_fits([FIT])
    directions = export_case.directions()
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        before = bare.model(ids).logits
        with bare.edited(PLAN, directions):
            hooked = bare.model(ids).logits
        bare.apply(PLAN, directions)
        edited = bare.model(ids).logits
        bare.restore()
        after = bare.model(ids).logits
    torch.testing.assert_close(hooked, edited, rtol=1e-4, atol=1e-5)
    assert torch.equal(before, after)
    assert (edited - before).abs().max() > 0.01
