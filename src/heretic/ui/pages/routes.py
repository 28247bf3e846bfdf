"""Which address shows what."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from nicegui import ui

from heretic.ui.pages import chat, run, runs, start
from heretic.ui.pages.parts import frame
from heretic.ui.reports import POLICY
from heretic.ui.site import Site


def add_pages(site: Site, app: FastAPI) -> None:
    """Add the pages of a site, and the reports as documents of their own."""

    @ui.page("/", title="Heretic: runs")
    async def _runs() -> None:
        await runs.show(site)

    @ui.page("/new", title="Heretic: new search")
    async def _new() -> None:
        await start.show(site)

    @ui.page("/run/{key}", title="Heretic: a run")
    async def _run(key: str, trial: int | None = None) -> None:
        await run.show(site, key, trial)

    @ui.page("/run/{key}/chat/{trial}", title="Heretic: chat")
    async def _chat(key: str, trial: int) -> None:
        await chat.show(site, key, trial)

    @ui.page("/report/{key}", title="Heretic: report")
    def _report(key: str) -> None:
        with frame(site, "Report") as alerts:
            if site.reports.content(key) is None:
                alerts.say(
                    "There is no such report any more. Make it again on the page of the run."
                )
                return
            ui.link("Download", f"/reports/{key}.html?download=1")
            made = ui.element("iframe").classes("report")
            made.props(f'src="/reports/{key}.html" sandbox="allow-scripts" title="Report"')

    @app.get("/reports/{name}")
    def _document(name: str, request: Request) -> Response:
        content = site.reports.content(name.removesuffix(".html"))
        if content is None:
            return Response("There is no such report.", status_code=404, media_type="text/plain")
        headers = {"Content-Security-Policy": POLICY}
        if "download" in request.query_params:
            headers["Content-Disposition"] = 'attachment; filename="heretic-report.html"'
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)
