"""`heretic look RUN WHAT`: what a run's directions mean, and where they act."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.errors import SettingsError
from heretic.system.display import counted
from heretic.system.files import check_writable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from heretic.report.page.charts import Figure

KINDS = ("words", "cosines", "tokens", "layers")

_TAKES = {
    "top": ("words",),
    "reply": ("tokens",),
    "html": ("tokens",),
    "prompts": ("layers",),
    "trust_plugins": ("layers",),
    "layer": ("words", "tokens", "layers"),
}
"""Which of WHAT each option is for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for.

    Attributes:
        run: The run folder.
        more: Arguments after WHAT: the other run of `cosines`, the prompts of `tokens`.
        screen: Where progress is shown.
    """

    run: Path
    more: tuple[str, ...]
    layers: tuple[int, ...]
    top: int
    reply: int
    prompts: int
    html: Path | None
    trust_plugins: bool
    with_pictures: bool
    options: SettingsOptions
    screen: Console
    started: float


@dataclass(frozen=True, slots=True)
class Found:
    """What was found: for programs, for the screen, and as figures.

    Attributes:
        figures: Empty unless pictures are asked for.
    """

    data: dict[str, Any]
    shown: RenderableType
    figures: Sequence[Figure] = ()


@click.command("look", cls=SettingsCommand)
@click.argument("run")
@click.argument("what", type=click.Choice(KINDS))
@click.argument("more", nargs=-1)
@click.option(
    "--layer", type=click.IntRange(0), multiple=True, help="A layer, from 0; may be repeated."
)
@click.option(
    "--top", default=8, type=click.IntRange(1, 1000), show_default=True, help="words: how many."
)
@click.option(
    "--reply",
    default=0,
    type=click.IntRange(0, 1000),
    metavar="N",
    help="tokens: colour the first N tokens of the model's reply, too.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="tokens: write the coloured text as a page.",
)
@click.option(
    "--prompts",
    default=20,
    type=click.IntRange(2),
    show_default=True,
    help="layers: prompts of each set.",
)
@click.option(
    "--trust-plugins",
    is_flag=True,
    help="layers: load the scorers from outside Heretic that the run names: their code is run.",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write each figure as PNG and SVG into this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@settings_options
@outlives_terminal()
def command(
    run: str,
    what: str,
    more: tuple[str, ...],
    pictures: Path | None,
    as_json: bool,
    options: SettingsOptions,
    **asked: Any,
) -> int:
    """Look into the directions of RUN, a run folder or its number in `heretic runs`.

    words: which tokens each layer's direction makes likely (logit lens).

    cosines: how alike the directions of its layers are; with MORE, another run, how alike they are
    to those of that run.

    tokens: how far each token of a prompt, which is MORE, lies along a layer's direction.

    layers: which layers decide. The direction is taken out, or added, after one layer at a time,
    beside a random vector. This takes minutes.
    """
    started = perf_counter()
    from rich.console import Console

    from heretic.cli.display.text import make_console
    from heretic.system.display import json_text, safe
    from heretic.system.optional import require

    _check(what, more)
    path = options.searched_run(run)
    page: Path | None = asked["html"]
    for place in filter(None, (page and page.parent, pictures)):
        check_writable(place)
    if pictures is not None:
        for module in ("altair", "vl_convert"):
            require(module, extra="report", purpose="Drawing pictures")
    screen = Console(stderr=True) if as_json else make_console()
    found = _LOOKS[what](
        Asked(
            run=path,
            more=more,
            layers=asked.pop("layer"),
            with_pictures=pictures is not None,
            options=options,
            screen=screen,
            started=started,
            **asked,
        )
    )
    if as_json:
        click.echo(json_text(found.data, indent=2))
        if page is not None:
            click.echo(safe(f"The page is {page}."), err=True)
    else:
        screen.print(found.shown)
    if pictures is not None:
        from heretic.report.page.pictures import write_pictures

        written = write_pictures(found.figures, pictures)
        click.echo(safe(f"{len(written)} pictures are in {pictures}."), err=as_json)
    return 0


def _check(what: str, more: Sequence[str]) -> None:
    """Refuse options and arguments that mean nothing here.

    Raises:
        SettingsError: One of them is given.
    """
    context = click.get_current_context()
    for name, kinds in _TAKES.items():
        given = context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
        if given and what not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{option} is for `heretic look RUN {' or '.join(kinds)}`.")
    most = {"cosines": 1, "tokens": len(more)}.get(what, 0)
    if len(more) > most:
        raise SettingsError(
            f"`heretic look RUN {what}` takes no further argument {more[most]!r}.",
            remedy="See `heretic look --help`.",
        )
    if what == "tokens" and not all(more or [""]):
        raise SettingsError(
            "There is no prompt to look at.", remedy='heretic look RUN tokens "A prompt"'
        )


def _words(asked: Asked) -> Found:
    from heretic.cli.display.look import words_table
    from heretic.model.lens import token_logits
    from heretic.model.words import token_texts
    from heretic.report.directions import layer_words

    model, directions = _loaded(asked)
    chosen = _layers(asked, model.n_layers)
    _check_directions(directions, chosen)
    layers = chosen or list(range(model.n_layers))
    rows = directions[[layer + 1 for layer in layers]]
    logits = token_logits(model, rows).numpy()

    def texts(ids: Sequence[int]) -> list[str]:
        return token_texts(model.tokenizer, ids)

    found = layer_words(logits, layers, texts, asked.top)
    figures: Sequence[Figure] = ()
    if asked.with_pictures:
        from heretic.report.page.directions import word_figures

        figures = word_figures(found)
    data = {"layers": [one.to_dict() for one in found]}
    return Found(data, words_table(found, asked.screen.width), figures)


def _cosines(asked: Asked) -> Found:
    from heretic.cli.display.look import cosines_shown
    from heretic.report.directions import cosine_map
    from heretic.runs.folder import known_run
    from heretic.runs.steering import first_directions

    paths = [asked.run, *map(asked.options.run_path, asked.more)]
    runs = [known_run(path) for path in dict.fromkeys(paths)]
    names = [Path(manifest.model).name for _, manifest in runs]
    vectors = [first_directions(folder)[1:] for folder, _ in runs]
    found = cosine_map(vectors[0], vectors[-1])
    other = len(runs) > 1
    unlike = other and len({manifest.fingerprint.get("model") for _, manifest in runs}) > 1
    figures: Sequence[Figure] = ()
    if asked.with_pictures:
        from heretic.report.page.directions import cosine_figure

        labels = [folder.path.name for folder, _ in runs]
        figures = [cosine_figure(found, labels[0], labels[1] if other else "")]
    data = {
        "models": names,
        "runs": [str(folder.path) for folder, _ in runs],
        "cosines": _numbers(found),
    }
    return Found(data, cosines_shown(found, other, unlike, asked.screen.width), figures)


def _tokens(asked: Asked) -> Found:
    from heretic.cli.display.look import tokens_shown
    from heretic.model.words import token_texts
    from heretic.report.tokens import ColouredText, layer_told_apart
    from heretic.runs.folder import known_run
    from heretic.runs.shown import read_shown
    from heretic.system.files import write_atomic

    folder, manifest = known_run(asked.run)
    shown = read_shown(folder)
    model, directions = _loaded(asked)
    geometry = () if shown is None else shown.geometry
    layer, why = layer_told_apart(list(map(dict, geometry)), model.n_layers)
    if asked.layers:
        chosen = _layers(asked, model.n_layers)
        if len(chosen) > 1:
            raise SettingsError("`heretic look RUN tokens` shows one layer: give one --layer.")
        layer, why = chosen[0], ""
    _check_directions(directions, [layer])
    lengths = () if shown is None or len(shown.lengths) != len(directions) else shown.lengths[1:]
    texts, maps = [], []
    for prompt, ids in zip(asked.more, model.encode_rows(asked.more, asked.reply), strict=True):
        replied = model.get_reply_ids([prompt], asked.reply)[0] if asked.reply else []
        values = model.get_projections([*ids, *replied], directions)[1:]
        named = token_texts(model.tokenizer, [*ids, *replied])
        length = float(lengths[layer]) if lengths else None
        own = tuple(map(float, values[layer]))
        texts.append(ColouredText(layer, tuple(named), own, length, len(replied)))
        maps.append(values.double().numpy())
    figures: Sequence[Figure] = ()
    if asked.with_pictures:
        from heretic.report.page.directions import token_map

        figures = [
            token_map(text, values, number)
            for number, (text, values) in enumerate(zip(texts, maps, strict=True), 1)
        ]
    if asked.html is not None:
        from heretic.report.page.tokens import tokens_page

        page = tokens_page(texts, Path(manifest.model).name)
        write_atomic(asked.html, page, parents=True)
    data = {"layer": layer, "texts": [text.to_dict() for text in texts]}
    return Found(data, tokens_shown(texts, why, asked.screen, asked.html), figures)


def _effects(asked: Asked) -> Found:
    import torch

    from heretic import pipeline
    from heretic.cli.display.look import effects_shown
    from heretic.cli.opening import reopened_run
    from heretic.errors import RunError
    from heretic.pipeline.layerwise import layer_effects, spread_layers
    from heretic.runs.steering import first_directions, mean_differences

    trust = asked.trust_plugins
    with reopened_run(
        asked.run, asked.options, asked.screen, asked.started, trust_plugins=trust
    ) as opened:
        manifest = opened.run.folder.require_manifest()
        directions = torch.from_numpy(first_directions(opened.run.folder))
        layers = _layers(asked, len(directions) - 1) or spread_layers(len(directions) - 1)
        _check_prompts(min(asked.prompts, len(opened.run.prompts.evaluation.bad)), len(layers))
        try:
            differences = torch.from_numpy(mean_differences(opened.run.folder))
        except RunError:  # of an earlier release
            differences = None
        model, _ = pipeline.load_run(opened.settings, opened.run.folder, manifest, opened.display)
        found = layer_effects(
            model,
            opened.run.prompts.evaluation,
            opened.run.scorers,
            directions,
            differences=differences,
            layers=layers,
            most_prompts=asked.prompts,
            max_response_length=opened.settings.max_response_length,
            seed=opened.run.seed,
            reporter=opened.display,
        )
        opened.display.close()
    figures: Sequence[Figure] = ()
    if asked.with_pictures:
        from heretic.report.page.directions import effect_figures

        figures = effect_figures(found)
    return Found(found.to_dict(), effects_shown(found), figures)


def _check_directions(directions: Any, layers: Sequence[int]) -> None:
    """Refuse layers without a direction, for which every figure would be zero.

    Args:
        directions: [layers + 1, hidden].

    Raises:
        SettingsError: There is one.
    """
    empty = [layer for layer in layers if not directions[layer + 1].any()]
    if empty:
        known = [layer for layer, row in enumerate(directions[1:]) if row.any()]
        raise SettingsError(
            f"The run has no direction at layer {empty[0]}: bad and good prompts do not differ "
            "there.",
            remedy=f"Layers with a direction: {', '.join(map(str, known)) or 'none'}.",
        )


def _check_prompts(count: int, layers: int) -> None:
    """Refuse what would take minutes and could find no layer.

    Raises:
        SettingsError: Too few prompts for so many layers.
    """
    from heretic.records.effects import least_changes

    least = least_changes(layers)
    if count < least:
        fewer = "" if layers == 1 else ", or name fewer layers by --layer"
        raise SettingsError(
            f"{count} bad evaluation prompts are too few to tell what happens at "
            f"{counted(layers, 'layer')}: at least {least} are needed.",
            remedy=f"Give --prompts {least} to a run that has so many{fewer}.",
        )


_LOOKS = {"words": _words, "cosines": _cosines, "tokens": _tokens, "layers": _effects}


def _loaded(asked: Asked) -> tuple[Any, Any]:
    """The model of the run, and the first direction of each layer, [layers + 1, hidden]."""
    import torch

    from heretic import pipeline
    from heretic.cli.display.reporter import make_reporter
    from heretic.pipeline.recorded import run_settings
    from heretic.runs.folder import known_run
    from heretic.runs.steering import first_directions

    folder, manifest = known_run(asked.run)
    directions = torch.from_numpy(first_directions(folder))
    _layers(asked, len(directions) - 1)  # a mistake is told before a model is loaded
    settings = run_settings(manifest, asked.options.layers())
    with make_reporter(asked.screen) as display:
        model, _ = pipeline.load_run(settings, folder, manifest, display)
    return model, directions


def _layers(asked: Asked, count: int) -> list[int]:
    """The layers that were named, ascending.

    Raises:
        SettingsError: The model has no such layer.
    """
    wrong = [layer for layer in asked.layers if layer >= count]
    if wrong:
        raise SettingsError(
            f"The model has no layer {wrong[0]}.", remedy=f"Its layers are 0 to {count - 1}."
        )
    return sorted(set(asked.layers))


def _numbers(values: Any) -> list[list[float | None]]:
    """A matrix for JSON: None where a layer has no direction."""
    rows = values.tolist()
    return [[None if math.isnan(value) else round(value, 6) for value in row] for row in rows]
