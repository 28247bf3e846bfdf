"""The page of a run: what its figures show, what it says, and that nothing in it can act."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.support import page_case, run_case
from tests.support.page_case import HOSTILE

from heretic.errors import HereticError
from heretic.main import main
from heretic.records.plan import FittedKernel
from heretic.records.trial import Score, Trial, front
from heretic.records.volume import hypervolume
from heretic.report.page import figures, html, words
from heretic.report.page.axes import in_lines
from heretic.report.page.charts import figures_of, figures_of_runs
from heretic.report.page.pictures import write_pictures
from heretic.report.page.run import RunData, read_run, told_apart
from heretic.runs.events import EventsFile
from heretic.runs.folder import RunFolder
from heretic.runs.shown import read_shown, write_shown


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished run that has kept everything, and whose texts are hostile."""
    return page_case.make_run(tmp_path / "run")


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_has_every_section_and_figure(path: Path) -> None:
    page = html.page_of_run(read_run(path))
    found = read(page).elements
    ids = {attributes.get("id") for _, attributes in found}
    assert ids >= {"run", "front", "saved", "layers", "geometry", "replies", "settings", "versions"}
    names = [figure.name for figure in figures_of(read_run(path))]
    assert set(names) >= {
        *("front", "growth", "growth-time", "map-mlp.down_proj", "sizes"),
        *("separation", "cosines", "norms", "time"),
    }
    assert ids >= {f"figure-{name}" for name in names}
    assert len(page) < 5e6


def test_a_line_of_a_legend_fits_a_telephone(path: Path) -> None:
    lines = {}
    for figure in figures_of(read_run(path)):
        color = figure.spec.get("encoding", {}).get("color", {})
        if figure.name in ("sizes", "separation", "cosines", "norms"):
            [rows] = figure.spec["datasets"].values()
            names = {row[color["field"]] for row in rows}
            lines[figure.name] = color["legend"]["columns"] * max(map(len, names))
    assert len(lines) == 4
    assert max(lines.values()) < 46


def test_scores_have_the_names_that_people_read(path: Path) -> None:
    text = "".join(read(html.page_of_run(read_run(path))).text)
    assert "KL divergence" in text
    assert "kl_divergence" not in text.partition("Settings and environment")[0]


def test_texts_of_models_and_prompts_are_shown_and_do_nothing(path: Path) -> None:
    page = html.page_of_run(read_run(path))
    reader = read(page)
    assert not [tag for tag, _ in reader.elements if tag in ("img", "iframe", "link", "object")]
    scripts = [attributes for tag, attributes in reader.elements if tag == "script"]
    specs = [one for one in scripts if one.get("type") == "application/json"]
    assert len(scripts) == len(specs) + 2  # the library and the page's own
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "action", "srcset"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    text = "".join(reader.text)
    assert "<script>alert(1)</script>" in text  # as text
    assert "{{7*7}}" in text
    assert "\x1b" not in page
    assert "\u202e" not in text


def test_the_policy_lets_in_no_network_and_these_scripts_alone(path: Path) -> None:
    page = html.page_of_run(read_run(path))
    [policy] = [
        str(attributes["content"])
        for tag, attributes in read(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert len(re.findall("'sha256-[^']+'", policy)) == 3


def test_a_shared_page_has_no_prompt_reply_path_or_name(path: Path) -> None:
    page = html.page_of_run(read_run(path), share=True)
    for text in ("somebody", "a plain one", "Sure.", "No. ", "system_prompt", str(path)):
        assert text not in "".join(read(page).text), text
    assert "somebody" not in page
    for figure in figures_of(read_run(path)):
        assert "somebody" not in json.dumps(figure.spec)


def test_a_shared_page_has_no_name_of_its_folder(tmp_path: Path) -> None:
    path = page_case.make_run(tmp_path / "of-jane-doe")
    assert "jane-doe" not in html.page_of_run(read_run(path), share=True)


def test_a_run_of_an_earlier_release_names_what_is_missing() -> None:
    earlier = Path(__file__).parents[1] / "data" / "earlier_run"
    run = read_run(next(path.parent for path in sorted(earlier.rglob("manifest.json"))))
    page = "".join(read(html.page_of_run(run)).text)
    assert "this run has not kept them" in page
    assert "this run has not kept its events" in page
    # It may have been saved, and no search of it will end any more.
    assert "no trial has been saved" not in page
    assert "when a search ends" not in page
    assert "figure-front" in html.page_of_run(run)


def test_replies_that_were_not_to_be_kept_are_named_as_missing(path: Path) -> None:
    folder = RunFolder(path)
    with folder.lock():
        manifest = folder.require_manifest()
        settings = {**manifest.settings, "keep_replies": False}
        folder.write_manifest(replace(manifest, settings=settings))
        shown = read_shown(folder)
        assert shown is not None
        write_shown(folder, replace(shown, replies=()))
    assert read_run(path).missing == ("Prompts and replies: `keep_replies` was off.",)


def test_a_run_without_trials_has_a_page(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        folder.write_manifest(run_case.MANIFEST)
        page = html.page_of_run(read_run(folder.path))
    text = "".join(read(page).text)
    assert "running" in text
    assert "no trial is complete yet" in text


def test_hypervolume_grows_to_that_of_the_front(path: Path) -> None:
    run = read_run(path)
    rows = figures.growth_rows([run])
    values = [row["volume"] for row in rows]
    assert len(values) == len(run.trials)
    assert values == sorted(values)
    points = [trial.objectives() for trial in run.trials]
    columns = list(zip(*points, strict=True))
    worst = tuple(max(one) + 0.1 * ((max(one) - min(one)) or 1.0) for one in columns)
    best = tuple(map(min, columns))
    whole = hypervolume([best], worst)
    wanted = hypervolume([trial.objectives() for trial in run.front], worst) / whole
    assert values[-1] == pytest.approx(wanted)
    # Two runs share the measure, so that a run and its copy have the same curve.
    both = figures.growth_rows([run, replace(run, path=path.parent / "copy")])
    assert [row["volume"] for row in both] == values * 2


def test_the_front_holds_what_the_run_says(path: Path) -> None:
    run = read_run(path)
    rows = figures.front_rows(run)
    data = figures.front_of(run)
    assert data is not None
    on_front = [row for row in rows if row["role"] in ("front", "chosen")]
    assert len(on_front) == len(run.front)
    assert [row["role"] for row in rows].count("chosen") == 1
    assert sum(row["on_front"] for row in rows) == len(run.front)
    assert {row["x"] for row in on_front} == {
        score.value for trial in run.front if (score := trial.score(data.x_name)) is not None
    }


def test_a_map_shows_weights_or_sizes(path: Path) -> None:
    run = read_run(path)
    value, rows = figures.map_rows(run)
    assert value == "ablation weight"
    for row in rows:
        trial = next(one for one in run.front if run.label(one.number) == row["trial"])
        wanted = trial.plan.ablation_weights(row["component"], row["layer"])
        assert row["value"] == max(wanted, key=abs)


def test_intervals_are_drawn_in_both_directions_of_the_original_too(path: Path) -> None:
    def spans(run: RunData) -> dict[str, str]:
        spec = next(one.spec for one in figures_of(run) if one.name == "front")
        rules = [one for one in spec["layer"] if one["mark"]["type"] == "rule"]
        return {
            axis: one["transform"][0]["filter"]
            for one in rules
            for axis in "xy"
            if axis + "2" in one["encoding"]
        }

    run = read_run(path)
    assert spans(run) == {}
    assert "Bars are" not in next(one.text for one in figures_of(run) if one.name == "front")

    def with_ends(trial: Trial) -> Trial:
        return replace(trial, scores=tuple(map(with_interval, trial.scores)))

    def with_interval(score: Score) -> Score:
        return replace(score, interval=(score.value / 2, score.value * 2))

    trials = tuple(map(with_ends, run.trials))
    found = spans(replace(run, trials=trials, front=tuple(front(trials))))
    assert set(found) == {"x", "y"}
    assert all("'other trial'" in kept for kept in found.values())


def test_colours_of_a_map_are_as_strong_on_both_sides_of_zero(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"trial 1": -0.25, "trial 2": 1.0}
    rows = [{"trial": k, "layer": 0, "component": "mlp", "value": v} for k, v in values.items()]
    monkeypatch.setattr(figures, "map_rows", lambda run: (figures.WEIGHT, rows))
    [found] = [one for one in figures_of(read_run(path)) if one.name == "map-mlp"]
    assert found.spec["encoding"]["color"]["scale"]["domain"] == [-1.0, 0, 1.0]


def test_a_map_of_fits_says_which_trials_it_has(path: Path) -> None:
    run = read_run(path)
    kernels = (("mlp.down_proj", FittedKernel("0" * 64, 0.5)),)
    fitted = replace(run.front[0], plan=replace(run.front[0].plan, kernels=kernels))
    sizes = {str(run.front[1].number): next(iter(run.shown.sizes.values()))}
    shown = replace(run.shown, sizes=sizes)
    run = replace(run, front=(fitted, *run.front[1:]), shown=shown)
    [found] = [one for one in figures_of(run) if one.name.startswith("map-")]
    assert "proposed and saved trials" in found.text
    assert f"Not shown: {len(run.front) - 1} trials of the front." in found.text


def test_the_deciding_part_of_a_reply_is_marked(path: Path) -> None:
    [found] = words.replies(read_run(path))
    first = found.rows[0].replies[0]
    assert first.parts[0] == words.Part("No.", marked=True)
    assert "".join(part.text for part in first.parts) == f"No. {HOSTILE}"
    assert found.rows[0].changed
    assert not found.rows[1].changed
    assert found.categories is not None
    counts = {row[0]: row[2] for row in found.categories.rows}
    assert counts["one"].startswith("1/1 ")
    assert counts["two"].startswith("0/1 ")
    assert counts["all"].startswith("1/2 ")


def test_the_command_makes_the_run_again(path: Path) -> None:
    import shlex

    found = shlex.split(words.command(read_run(path)))
    assert found[0] == "heretic"
    assert f"--n-trials={run_case.N_TRIALS}" in found
    assert found[-1] == "--seed=7"


def bounded(trial: Trial) -> Trial:
    """The trial as one whose evaluation ended early."""
    return replace(trial, scores=tuple(replace(score, bound=True) for score in trial.scores))


def test_trials_that_ended_early_are_counted(path: Path) -> None:
    run = read_run(path)
    assert "ended early" not in dict(words.facts(run))
    behind = [trial for trial in run.trials if trial not in run.front] or run.trials[-1:]
    ended = replace(run, trials=tuple(bounded(t) if t in behind else t for t in run.trials))
    facts = dict(words.facts(ended))
    assert facts["ended early"] == f"{len(behind)}, since another is better"
    assert facts["trials"] == f"{len(run.trials)} of {len(run.trials)}"
    front_ = next(one for one in figures_of(ended) if one.name == "front")
    assert f"Ended early, since another is better: {len(behind)}." in front_.text


def test_a_saved_trial_is_in_the_table_of_the_front(path: Path) -> None:
    run = read_run(path)
    saved = run.shown.exports[-1].trial
    rows = [row[0] for row in words.proposals(run).rows]
    assert len([row for row in rows if row.startswith(f"trial {saved}")]) == 1
    others = {number: names for number, names in run.proposed.items() if number != saved}
    table = words.proposals(replace(run, proposed=others))
    assert table.rows[-1][0] == f"trial {saved} (saved)"
    assert all(table.rows[-1][1:])
    cells = [row[1] for row in words.compared([replace(run, proposed=others)]).rows]
    assert f"trial {saved} (saved)" in cells


def test_versions_that_are_not_known_have_no_section(path: Path) -> None:
    run = read_run(path)
    known = replace(run, manifest=replace(run.manifest, versions={"torch": "2.0"}))
    unknown = replace(run, manifest=replace(run.manifest, versions={}))
    assert 'id="versions"' in html.page_of_run(known)
    assert "Versions" not in "".join(read(html.page_of_run(unknown)).text)


def test_layers_are_named_by_whole_numbers(path: Path) -> None:
    """Of a few layers, the library's own choice names halves too."""
    found = {one.name: one.spec for one in figures_of(read_run(path))}
    for name in ("sizes", "separation", "cosines", "norms"):
        axis = found[name]["encoding"]["x"]["axis"]
        assert axis["values"] == [0, 1, 2] or axis["values"] == [1, 2]
        assert axis["format"] == "d"


def test_a_long_name_goes_on_in_another_line(path: Path) -> None:
    stages = [{"stage": "Scoring the chosen trial on replies of up to 8 tokens", "seconds": 1.0}]
    [row], height = in_lines(stages, "stage")
    assert row["lines"].replace("\n", " ") == stages[0]["stage"]
    assert max(map(len, row["lines"].split("\n"))) <= 30
    assert height >= 14 * len(row["lines"].split("\n"))
    time = next(one.spec for one in figures_of(read_run(path)) if one.name == "time")
    assert time["encoding"]["y"]["field"] == "lines"
    assert "split" in time["encoding"]["y"]["axis"]["labelExpr"]


def test_names_in_the_front_are_drawn_once_each(path: Path) -> None:
    run = read_run(path)
    spec = next(one.spec for one in figures_of(run) if one.name == "front")
    marks = [one for one in spec["layer"] if one["mark"]["type"] == "text"]
    named = {row["label"] for row in figures.front_rows(run) if row["names"]}
    for align in ("left", "right"):
        kept = [
            one["transform"][0]["filter"]["oneOf"] for one in marks if one["mark"]["align"] == align
        ]
        assert sorted(label for labels in kept for label in labels) == sorted(named)


def test_runs_are_compared(path: Path, tmp_path: Path) -> None:
    other = run_case.make_run(tmp_path / "other")
    runs = [read_run(path), read_run(other.path)]
    assert [figure.name for figure in figures_of_runs(runs)] == [
        "fronts",
        "growth",
        "growth-time",
    ]
    text = "".join(read(html.page_of_runs(runs)).text)
    assert "2 runs compared" in text
    assert "other" in text
    assert "different models" not in text
    manifest = replace(runs[1].manifest, model="org/else", fingerprint={"model": "else"})
    text = "".join(read(html.page_of_runs([runs[0], replace(runs[1], manifest=manifest)])).text)
    assert "The runs are of different models" in text
    assert "else" in text


def test_pictures_are_files_of_both_kinds(path: Path, tmp_path: Path) -> None:
    found = figures_of(read_run(path))
    written = write_pictures(found[:2], tmp_path / "pictures")
    assert [one.suffix for one in written] == [".svg", ".png"] * 2
    assert written[0].read_text().startswith("<svg")
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_pictures_without_a_place_are_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HereticError, match=r"Cannot write .*file.pictures"):
        write_pictures([], tmp_path / "file" / "pictures")


def test_the_command_writes_the_page(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(path)]) == 0
    assert str(path / "report.html") in capsys.readouterr().out
    assert (path / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(path), "--share", "-o", "shared.html"]) == 0
    assert "somebody" not in Path("shared.html").read_text()
    assert main(["report", str(path), str(path.parent / "nothing")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_page_needs_no_torch(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from heretic.main import main; "
        f"main(['report', {str(path)!r}, '-o', {str(tmp_path / 'page.html')!r}]); "
        "print(sorted({'torch', 'transformers', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_events_of_a_discarded_run_do_not_count(path: Path) -> None:
    folder = RunFolder(path)
    old = {"at": "2020-01-01T00:00:00+00:00"}
    lines = [{**old, "event": "CommandStarted"}, {**old, "event": "CommandEnded"}]
    folder.events_path.unlink()
    folder.events_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = EventsFile(folder.events_path)
    file.write("CommandStarted", {})
    run: RunData = read_run(path)
    assert run.events[0]["at"] == "2020-01-01T00:00:00+00:00"  # nothing newer began the run
    begun = {"at": "2026-01-02T03:04:00+00:00", "event": "CommandStarted"}
    with folder.events_path.open("a") as stream:
        stream.write(json.dumps(begun) + "\n")
    assert [row["event"] for row in read_run(path).events] == ["CommandStarted"]


def test_the_library_of_the_page_is_made_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vl_convert

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = _below_the_date(path)
    [kept] = (tmp_path / "cache").rglob("vega-*.js")
    with monkeypatch.context() as patch:
        patch.setattr(vl_convert, "javascript_bundle", None)  # fails where it is called
        assert _below_the_date(path) == first
    kept.write_text(kept.read_text()[:1000])  # cut
    assert _below_the_date(path) == first


def _below_the_date(path: Path) -> str:
    return html.page_of_run(read_run(path)).partition("<main>")[2]


def test_a_saved_trial_that_fell_off_the_front_is_not_part_of_it(path: Path) -> None:
    run = read_run(path)
    gone = run.front[0].number
    later = replace(run, front=run.front[1:], chosen=gone)
    rows = figures.front_rows(replace(later, trials=run.trials))
    [chosen] = [row for row in rows if row["role"] == "chosen"]
    assert chosen["label"].startswith(f"trial {gone}")


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Loading prompts", "Loading prompts"),
        ("Loading my model", "Loading ..."),
        ("Saving to /home/me/x", "Saving ..."),
        ("Scoring org/name", "Scoring ..."),
        ("Scoring the original model", "Scoring the original model"),
        ("Scoring the chosen trial on replies of up to 256 tokens",) * 2,
        ("Scoring 3 trials on 50 replies of up to 256 tokens",) * 2,
        ("Comparing a with b", "Comparing ..."),
    ],
)
def test_stages_are_told_without_names(path: Path, title: str, shown: str) -> None:
    started = {"at": "2026-01-01T00:00:00+00:00", "event": "StageStarted", "title": title}
    ended = {"at": "2026-01-01T00:00:02+00:00", "event": "StageFinished"}
    run = replace(read_run(path), events=(started, ended))
    assert figures.time_rows(run) == [{"stage": shown, "seconds": 2.0, "times": 1}]


def test_runs_of_one_name_are_told_apart(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy" / path.name)
    runs = told_apart([read_run(path), read_run(tmp_path / "copy" / path.name)])
    assert len({row["run"] for row in figures.growth_rows(runs)}) == 2


def test_runs_with_other_objectives_share_no_figure(path: Path) -> None:
    run = read_run(path)
    trials = tuple(
        replace(trial, scores=tuple(replace(one, name=f"{one.name}_2") for one in trial.scores))
        for trial in run.trials
    )
    other = replace(run, trials=trials)
    assert figures_of_runs([run, other]) == []
    assert "no figure compares them" in html.page_of_runs([run, other])


def test_a_large_map_keeps_what_is_proposed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_ROWS", 2)
    run = read_run(path)
    assert len(run.front) > 2
    kept = [trial.number for trial in figures.mapped(run)]
    assert set(kept) >= set(run.proposed)
    assert len(kept) == max(2, len(run.proposed))
