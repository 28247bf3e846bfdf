"""A read-only gallery of reports that `heretic report RUN --share` wrote, such as for a Space.

    uvicorn app:app --host 127.0.0.1 --port 7860

Reports are the files `reports/*.html` beside this one. Anyone may have written them, so each is
shown in a frame without rights: its scripts run, but reach neither this page, nor cookies, and get
nothing from the network. Two things no policy forbids in all browsers: connections of WebRTC, and
that a report opened by itself, outside the frame, leads to another address. Nothing is stored, and
nothing can be uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

REPORTS = Path(__file__).with_name("reports")
MOST_BYTES = 8 * 2**20
"""Of a report; `heretic report` stays below 5 MB."""

HEAD_BYTES = 4096
"""In which a report has its title."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.html")
TITLE = re.compile(r"<title>([^<]{1,300})</title>")

HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Not `frame-ancestors`: a Space is itself shown in a frame.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'"
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)
"""Beside the policy that a report has in itself. It holds outside a frame, too. `sandbox` takes
rights away but restricts no request; the rest does."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 90rem }}
iframe {{ width: 100%; height: 85vh; border: 1px solid GrayText }}
</style></head><body><main><h1>{title}</h1>
{body}</main></body></html>
"""
INTRODUCTION = """<p>Each page tells of a search by Heretic: which edits of a model's weights it
found, how often each still declines, and what each costs. An edited model may answer what the
original declined; who uses it is responsible for what it is used for.</p>
"""


@dataclass(frozen=True, slots=True)
class Report:
    """One file of the gallery."""

    path: Path
    title: str

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return self.path.stem


def reports(folder: Path) -> list[Report]:
    """The reports of a folder by their names; links, large files and odd names are left out."""
    found = [path for path in sorted(folder.glob("*.html")) if is_report(path)]
    return [Report(path, title_of(path)) for path in found]


def is_report(path: Path) -> bool:
    """Whether a file is shown."""
    is_plain = path.is_file() and not path.is_symlink()
    return bool(NAME.fullmatch(path.name)) and is_plain and path.stat().st_size <= MOST_BYTES


def title_of(path: Path) -> str:
    """What a report calls itself, or the name of its file."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", "replace")
    found = TITLE.search(head)
    return unescape(found[1]).strip() if found else path.stem


def page(title: str, body: str) -> Response:
    """A page of this gallery's own."""
    content = PAGE.format(title=escape(title), body=body)
    return HTMLResponse(content, headers={**HEADERS, "Content-Security-Policy": PAGE_POLICY})


def wanted(request: Request) -> Report:
    """The report that an address names.

    Raises:
        HTTPException: There is none of that name.
    """
    name = request.path_params["name"]
    known = {report.name: report for report in reports(REPORTS)}
    if name not in known:
        raise HTTPException(404, "There is no report of that name.")
    return known[name]


def index(request: Request) -> Response:
    """All reports."""
    del request
    rows = [
        f'<li><a href="show/{escape(one.name)}">{escape(one.title)}</a> ({escape(one.name)})</li>'
        for one in reports(REPORTS)
    ]
    listed = f"<ul>\n{''.join(rows)}</ul>" if rows else "<p>There are no reports yet.</p>"
    return page("Reports of Heretic", INTRODUCTION + listed)


def show(request: Request) -> Response:
    """One report in a frame without rights."""
    report = wanted(request)
    frame = (
        f'<p><a href="../">All reports</a></p>\n<iframe title="{escape(report.title)}" '
        f'sandbox="allow-scripts" src="../report/{escape(report.name)}"></iframe>'
    )
    return page(report.title, frame)


def raw(request: Request) -> Response:
    """The file itself, for the frame."""
    headers = {**HEADERS, "Content-Security-Policy": REPORT_POLICY}
    return FileResponse(wanted(request).path, media_type="text/html", headers=headers)


app = Starlette(
    routes=[Route("/", index), Route("/show/{name}", show), Route("/report/{name}", raw)]
)
