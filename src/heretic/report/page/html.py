"""Puts a page together: one file without a request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from heretic import __version__
from heretic.errors import HereticError
from heretic.report.page import theme, words
from heretic.report.page.charts import Figure, figures_of, figures_of_runs
from heretic.report.page.figures import objective_names
from heretic.report.page.run import RunData
from heretic.system.display import safe
from heretic.system.files import user_cache, write_atomic

POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "script-src {scripts}; style-src {styles}"
)

REPLIES = (
    "The search ends a reply once its verdict is final. These were made again, to their ends, so "
    "that single verdicts may differ from what the search counted."
)

_END = "\n// the end\n"

OF_RUN = ("front", "growth", "growth-time")
OF_LAYERS = ("map-", "sizes")
OF_GEOMETRY = ("separation", "cosines", "norms")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, with a heading of its own."""

    id: str
    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, words.Table]] = ()
    notes: Sequence[str] = ()
    code: str = ""
    figures: Sequence[Figure] = field(default=())
    exchanges: Sequence[words.Exchanges] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        rows = [found for _, found in self.tables if found.rows]
        filled = (self.facts, rows, self.notes, self.code, self.figures, self.exchanges)
        return not any(filled)


def page_of_run(run: RunData, *, share: bool = False) -> str:
    """The page of one run.

    Args:
        share: Leave out prompts, replies, paths, and names of users and hosts.
    """
    figures = figures_of(run)

    def some(*names: str) -> list[Figure]:
        return [one for one in figures if one.name.startswith(names)]

    settings = words.changed_settings(run, share)
    missing = run.missing
    if share:
        missing = ("Prompts, replies, paths and texts of settings are left out of this page.",)
    sections = [
        Section("run", "The run", facts=words.facts(run)),
        Section("front", "The front", tables=[("", words.proposals(run))], figures=some(*OF_RUN)),
        Section("saved", "Saved models", tables=words.exports(run, share)),
        Section("layers", "Layers", figures=some(*OF_LAYERS)),
        Section("geometry", "Geometry", _geometry(run), figures=some(*OF_GEOMETRY)),
        Section("replies", "Replies", REPLIES, exchanges=[] if share else words.replies(run)),
        Section("time", "Time", figures=some("time")),
        Section(
            "settings",
            "Settings and environment",
            tables=[("Settings that differ from the defaults", settings)] if settings.rows else [],
            code="" if share else words.command(run),
        ),
        Section("versions", "Versions", tables=[("", words.environment(run))]),
        Section("missing", "What is missing", notes=missing),
    ]
    title = f"Heretic: {words.model_name(run)}"
    lead = f"The search of a run, as of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC ({run.state})."
    return _page(title, lead, sections, figures)


def page_of_runs(runs: Sequence[RunData]) -> str:
    """The page that compares runs; it names their folders and shows no prompts."""
    figures = figures_of_runs(runs)
    unlike = []
    if len(set(map(objective_names, runs))) > 1:
        unlike.append("The runs optimise different scores, so that no figure compares them.")
    if len({run.manifest.fingerprint.get("model") for run in runs}) > 1:
        unlike.append("The runs are of different models: each is measured against its own.")
    sections = [
        Section(
            "fronts",
            "The runs",
            " ".join(unlike),
            tables=[("", words.compared(runs))],
            figures=figures,
        ),
        *(
            Section(
                f"run-{number}",
                run.name,
                facts=[("model", words.model_name(run)), *words.facts(run)],
                notes=run.missing,
            )
            for number, run in enumerate(runs)
        ),
    ]
    lead = f"{len(runs)} runs compared, as of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    return _page("Heretic: runs compared", lead, sections, figures)


def _geometry(run: RunData) -> str:
    good, bad = run.shown.geometry_prompts
    if not good:
        return ""
    return f"Residuals at the last position of {good} good and {bad} bad direction prompts."


def _page(title: str, lead: str, sections: Sequence[Section], figures: Sequence[Figure]) -> str:
    from jinja2 import Environment, StrictUndefined

    style, script = resource("page.css"), resource("page.js")
    library = _library() if figures else ""
    scripts = [text for text in (library, script) if text]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=harmless
    )
    template = environment.from_string(resource("page.html.jinja"))
    return template.render(
        title=title,
        lead=lead,
        sections=[section for section in sections if not section.is_empty],
        figures=figures,
        themes={"light": theme.LIGHT, "dark": theme.DARK},
        style=style,
        script=script,
        library=library,
        policy=POLICY.format(
            scripts=" ".join(map(source_of, scripts)) or "'none'", styles=source_of(style)
        ),
        footer=(
            f"Made by Heretic {__version__}. Its docs/report.md says what the figures are, "
            "docs/trust.md what they cannot see."
        ),
    )


def harmless(value: Any) -> Any:
    """Text without characters that command a terminal, hide, or turn the direction of a line."""
    return safe(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def resource(name: str) -> str:
    """A text file that lies beside this module."""
    return files("heretic.report.page").joinpath(name).read_text(encoding="utf-8")


def _library() -> str:
    """Vega-Embed with what it needs, as one script that may stand within a page.

    Making it takes seconds, so it is kept in the user's cache, by the version of its maker.
    """
    import vl_convert

    kept: Path | None = None
    with suppress(HereticError):  # no home folder
        release = version("vl-convert-python")
        kept = user_cache() / "heretic" / "report" / f"vega-{release}.js"
    with suppress(OSError, UnicodeDecodeError):
        found = "" if kept is None else kept.read_text(encoding="utf-8")
        if found.endswith(_END):  # whole
            return found
    # Its stub demands an argument that it does not need.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    script = bundle.replace("</script", "<\\/script") + _END
    with suppress(OSError, HereticError):
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, script)
    return script


def source_of(text: str) -> str:
    """A source expression of the policy for an inline part."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def spec_in_theme(figure: Figure, config: dict[str, Any], width: int) -> str:
    """A figure's specification for a file, of that width in pixels."""
    return json.dumps({**figure.spec, "config": config, "width": width})
