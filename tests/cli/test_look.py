"""`heretic look`: what it prints, writes and refuses, on a run of a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from tests.support import run_case
from tests.support.page_case import ESCAPE, HOSTILE
from tests.support.session import session_of

from heretic.cli.commands.look import KINDS
from heretic.cli.display.look import cosines_shown, tokens_shown, words_table
from heretic.main import main
from heretic.model.lens import token_logits
from heretic.report.directions import layer_words
from heretic.report.tokens import ColouredText
from heretic.runs.folder import RunFolder
from heretic.runs.shown import read_shown, write_shown
from heretic.runs.steering import first_directions

WIDTHS = (60, 80, 120, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    place = tmp_path_factory.mktemp("run")
    sets = {
        f"{kind}_{use}": {"dataset": str(place / f"{kind}.txt"), "split": split}
        for kind in ("good", "bad")
        for use, split in (("prompts", "train[:5]"), ("evaluation_prompts", "train[5:]"))
    }
    return session_of(place, **sets).folder


def looked(folder: RunFolder, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What `--json` prints."""
    assert main(["look", str(folder.path), *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["look", *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["words", "--layer", "1"],
        ["cosines"],
        ["tokens", "Hello"],
        ["layers", "--layer", "1", "--prompts", "6"],
    ],
    ids=KINDS,
)
def test_each_kind_prints_a_table_figures_and_pictures(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: list[str]
):
    run = ["look", str(folder.path), *given]
    assert main(run) == 0
    shown = capsys.readouterr().out
    assert "layer" in shown.lower()
    assert main([*run, "--json", "--pictures", str(tmp_path / "pictures")]) == 0
    told = capsys.readouterr()
    pictures = list((tmp_path / "pictures").iterdir())
    assert json.loads(told.out)
    assert pictures
    assert f"{len(pictures)} pictures are in" in told.err


def test_words_are_those_of_the_lens(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    found = looked(folder, capsys, "words", "--top", "3", "--layer", "2", "--layer", "0")
    assert [one["layer"] for one in found["layers"]] == [0, 2]
    from heretic.config.settings import Settings
    from heretic.model import Model

    model = Model(Settings.restore(dict(folder.require_manifest().settings)))
    logits = token_logits(model, torch.from_numpy(first_directions(folder))[3:])[0]
    ids = [token["id"] for token in found["layers"][1]["promoted"]]
    assert ids == logits.topk(3).indices.tolist()
    ids = [token["id"] for token in found["layers"][1]["suppressed"]]
    assert ids == (-logits).topk(3).indices.tolist()


def test_cosines_need_no_model(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    found = looked(folder, capsys, "cosines", "--pictures", str(tmp_path / "pictures"))
    directions = first_directions(folder)[1:]
    assert np.allclose(found["cosines"], directions @ directions.T, atol=1e-5)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["cosines.png", "cosines.svg"]


def other_run(path: Path, directions: np.ndarray) -> RunFolder:
    other = run_case.make_run(path)
    with other.lock():
        other.save_directions(directions.astype(np.float32))
    return other


def test_two_runs_are_compared_layer_by_layer(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    own = first_directions(folder)
    other = other_run(tmp_path / "other", np.concatenate([own[:1], own[:0:-1]]))
    found = looked(folder, capsys, "cosines", str(other.path))
    assert np.allclose(np.diag(np.array(found["cosines"])[:, ::-1]), 1.0, atol=1e-4)
    assert main(["look", str(folder.path), "cosines", str(other.path)]) == 0
    told = capsys.readouterr().out
    assert "most alike" in told
    assert "The runs are of different models" in told


def test_tokens_of_markup_are_shown_as_text(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    prompt, page = f"[bold]{HOSTILE}{ESCAPE}[/bold]", tmp_path / "new" / "page.html"
    arguments = ["tokens", prompt, "--layer", "1", "--reply", "3"]
    assert main(["look", str(folder.path), *arguments, "--json", "--html", str(page)]) == 0
    printed_json, said = capsys.readouterr()
    assert f"The page is {page}." in said
    found = json.loads(printed_json)
    (text,) = found["texts"]
    assert text["layer"] == 1
    assert text["replied"] <= 3
    joined = "".join(token["text"] for token in text["tokens"])
    assert "[bold]</script><script>alert(1)</script>" in joined
    assert len([token for token in text["tokens"] if token["value"] is not None]) > 90
    content = page.read_text(encoding="utf-8")
    assert "<script>" not in content
    assert "default-src" in content
    assert main(["look", str(folder.path), *arguments]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert "Layer 1." in told


def test_the_layer_is_chosen_and_said(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    assert main(["look", str(folder.path), "tokens", "Hello"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "where a linear probe tells the run's prompts apart" in told
    assert "the length of the direction, from good to bad prompts" in told


def test_layers(folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    pictures = tmp_path / "pictures"
    given = ["layers", "--layer", "1", "--prompts", "6", "--pictures", str(pictures)]
    assert main(["look", str(folder.path), *given]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "The direction taken out after one layer: replies to the first 6 bad prompts" in told
    assert "The direction at its length added after one layer: replies to the first 6 good" in told
    assert len(list(pictures.glob("layers-*.png"))) == 4


def test_a_run_of_an_earlier_release_adds_nothing(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    shown = read_shown(folder)
    assert shown is not None
    with folder.lock():
        write_shown(folder, replace(shown, lengths=()))
    try:
        found = looked(folder, capsys, "layers", "--layer", "1", "--prompts", "6")
        text = looked(folder, capsys, "tokens", "Hello")["texts"][0]
    finally:
        with folder.lock():
            write_shown(folder, shown)
    assert set(found["changes"]) == {"removed"}
    assert "kept no lengths" in found["left_out"][0]
    assert text["length"] is None


def test_a_layer_without_a_direction_is_refused(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    directions = folder.load_directions()
    lacking = directions.copy()
    lacking[2] = 0.0
    with folder.lock():
        folder.save_directions(lacking)
    try:
        run = str(folder.path)
        for given in (["words", "--layer", "1"], ["tokens", "Hello", "--layer", "1"]):
            told = " ".join(refused(capsys, run, *given).split())
            assert "The run has no direction at layer 1" in told
            assert "Layers with a direction: 0, 2." in told
        assert [one["layer"] for one in looked(folder, capsys, "words")["layers"]] == [0, 2]
    finally:
        with folder.lock():
            folder.save_directions(directions)


def test_mistakes_are_told(folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    run = str(folder.path)
    wide = other_run(tmp_path / "wide", np.ones((4, 31)))
    bare = run_case.make_run(tmp_path / "bare")
    (bare.path / "directions.safetensors").unlink()
    for told, arguments in {
        "width 32 and of width 31 cannot be compared": [run, "cosines", str(wide.path)],
        "directions.safetensors": [str(bare.path), "cosines"],
        "The model has no layer 3. Its layers are 0 to 2": [run, "words", "--layer", "3"],
        "5 bad evaluation prompts are too few to tell what happens at 1 layer: at least 6": [
            *(run, "layers", "--layer", "1", "--prompts", "5")
        ],
        "--prompts 7 to a run that has so many, or name fewer layers": [
            *(run, "layers", "--prompts", "6")
        ],
        "The model has no layer 9": [run, "layers", "--layer", "9"],
        "There is no prompt to look at": [run, "tokens"],
        "give one --layer": [run, "tokens", "Hi", "--layer", "0", "--layer", "1"],
        "--reply is for `heretic look RUN tokens`": [run, "words", "--reply", "3"],
        "--layer is for": [run, "cosines", "--layer", "1"],
        "takes no further argument 'x'": [run, "words", "x"],
        "takes no further argument 'b'": [run, "cosines", run, "b"],
        "'nonsense' is not one of": [run, "nonsense"],
        "is not a run folder": [str(tmp_path), "cosines"],
    }.items():
        assert told in " ".join(refused(capsys, *arguments).split()), told


@pytest.mark.parametrize("arguments", [["words"], ["tokens", "Hello"]])
def test_a_layer_that_is_not_there_is_told_before_a_model_is_loaded(
    folder: RunFolder,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("heretic.pipeline.load_run", lambda *_: pytest.fail("a model is loaded"))
    told = refused(capsys, str(folder.path), *arguments, "--layer", "9")
    assert "The model has no layer 9. Its layers are 0 to 2." in told


def test_a_missing_choice_is_told_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert "Choose from: words, cosines, tokens, layers. See" in refused(capsys, "run")


# --- the screen ----------------------------------------------------------------------------


def printed(shown: Any, width: int, *, colour: bool = False) -> str:
    console = Console(
        width=width,
        record=True,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_fits(width: int):
    logits = np.random.default_rng(0).normal(size=(30, 50))
    words = layer_words(
        logits, range(30), lambda ids: [f" 宽 a fairly long {number}" for number in ids], 20
    )
    table = printed(words_table(words, width), width)
    assert table.count("·宽·a·fairly·lon") == 30 * 2 * 20  # all that were asked for
    assert "29 " in table
    many = np.random.default_rng(1).uniform(-1, 1, size=(80, 80))
    for shown in (table, printed(cosines_shown(many, False, False, width), width)):
        assert max(map(cell_len, shown.splitlines())) <= width


def test_negative_cosines_show_their_sign():
    told = printed(cosines_shown(np.array([[1.0, -0.35], [0.05, np.nan]]), False, False, 80), 80)
    first, second = told.splitlines()[2:4]
    assert first.split() == ["0", "9-3"]
    assert second.split() == ["1", "·"]


def test_wide_tokens_and_values_that_are_not_finite_keep_their_columns():
    text = ColouredText(0, ("first", "宽", "b"), (9.0, float("nan"), 2.0), 2.0)
    plain = printed(tokens_shown([text], "", Console(width=80, no_color=True), None), 80)
    wide, narrow = plain.splitlines()[-2:]
    assert wide.split() == ["-", "宽"]
    assert narrow.split() == ["+1.00", "b", "+" * 8]
    text = ColouredText(0, ("first", "a", "宽"), (9.0, -2.0, 2.0), 2.0)
    plain = printed(tokens_shown([text], "", Console(width=80, no_color=True), None), 80)
    narrow, wide = plain.splitlines()[-2:]
    assert cell_len(wide.partition("+++")[0]) == cell_len(narrow.partition("---")[0])


def test_a_real_dot_is_no_space():
    text = ColouredText(0, (" a", "·", " b"), (0.0, 0.0, 0.0), 1.0)
    console = Console(width=80, force_terminal=True, color_system="truecolor")
    assert " a· b" in printed(tokens_shown([text], "", console, None), 80, colour=True)


def test_colour_shows_both_sides_and_the_reply_is_underlined():
    text = ColouredText(0, ("a", " b", "\n", "c"), (50.0, 9.0, -9.0, 0.0), 10.0, 1)
    console = Console(width=80, force_terminal=True, color_system="truecolor")
    told = printed(tokens_shown([text], "", console, None), 80, colour=True)
    lines = told.splitlines()
    coloured = next(line for line in lines if "\\n" in line)
    assert coloured.count("48;2;") == 3  # two toward, one away
    assert "\x1b[4mc" in told
    assert "Farthest after the first token: ·b +0.90" in told
