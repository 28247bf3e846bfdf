"""Serves the page until it is told to stop; then the worker ends after its batch."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from heretic.errors import HereticError
from heretic.system.optional import require
from heretic.ui.access import Access, hosts_for, proxied_of
from heretic.ui.guard import Guard
from heretic.ui.job import Job
from heretic.ui.places import Places
from heretic.ui.site import Site

PORT = 7860
LARGEST_MESSAGE = 2**20
"""Bytes of what a browser sends over a websocket at once."""

CLOSING_SECONDS = 3
"""For which open connections are waited for, once the server is to stop."""

OWN_VARIABLES = ("NICEGUI_", "MATPLOTLIB", "UVICORN_")
"""What the libraries would take from the environment: addresses, a folder and a server that keep
what pages store."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `heretic ui` was told.

    Attributes:
        port: 0 for any that is free.
        hosts: Further names by which the page may be asked.
        folders: Further folders for pickers.
        runs: Folder of the run folders.
        opens: Whether to open a browser.
    """

    runs: Path
    host: str = "127.0.0.1"
    port: int = PORT
    hosts: Sequence[str] = field(default_factory=tuple)
    folders: Sequence[Path] = field(default_factory=tuple)
    opens: bool = True


def serve(options: Options, say: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        say: Shows a line; the first holds the address with the token.

    Raises:
        HereticError: The address is in use, or is no address; or the extra is not installed.
    """
    # Told to the libraries by this process alone, before they are imported.
    for name in [name for name in os.environ if name.startswith(OWN_VARIABLES)]:
        del os.environ[name]
    require("nicegui", extra="ui", purpose="The page")
    listener = _listener(options.host, options.port)
    access = Access(
        listener.getsockname()[1],
        hosts_for(options.host, options.hosts),
        proxied_of(options.hosts),
    )
    site = Site(options.runs, _places(options), Job(Path.cwd(), options.runs))
    address = access.address(options.host)

    def ready() -> None:
        say(f"The page is {address}")
        say("Ctrl+C ends it; a search that is on its way ends after its batch, and can go on.")
        if options.opens:
            _open(address)

    _run(site, access, options.host, listener, ready, say)


def _places(options: Options) -> Places:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Places.of([Path.cwd(), options.runs, Path(HF_HUB_CACHE), *options.folders])


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens, so that an address in use is told before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HereticError(
            f"Nothing can be served at {host}, port {port}: {reason}.",
            remedy="Another port: `heretic ui --port 7861`. Port 0 takes any that is free.",
        ) from error


def _run(
    site: Site,
    access: Access,
    host: str,
    listener: socket.socket,
    ready: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    import uvicorn
    from fastapi import FastAPI
    from nicegui import ui

    from heretic.ui.pages.routes import add_pages

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ready()
        try:
            yield
        finally:
            await _close(site, lambda: server.force_exit, say)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    add_pages(site, app)
    ui.run_with(
        app,
        title="Heretic",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=30.0,
        gzip_middleware_factory=None,
    )
    config = uvicorn.Config(
        Guard(app, access),
        host=host,
        port=access.port,
        log_level="warning",
        access_log=False,  # it would hold the token
        proxy_headers=False,
        server_header=False,
        ws_max_size=LARGEST_MESSAGE,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


async def _close(site: Site, is_forced: Callable[[], bool], say: Callable[[str], None]) -> None:
    """End the worker after its batch; at a second Ctrl+C it is left to do that by itself."""
    if site.job.is_busy:
        say("The search ends after its batch. Ctrl+C again does not wait for that.")
    closing = asyncio.create_task(site.close())
    while not closing.done() and not is_forced():
        await asyncio.wait({closing}, timeout=0.2)
    if closing.done():
        await closing


def _open(address: str) -> None:
    """Open a browser without telling other users the token, who see the arguments of programs.

    The browser is given a file of this user's that leads to the address.
    """
    descriptor, name = tempfile.mkstemp(prefix="heretic-ui-", suffix=".html")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        target = escape(address, quote=True)
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={target}">')

    def work() -> None:
        with suppress(webbrowser.Error):
            webbrowser.open(Path(name).as_uri())

    threading.Thread(target=work, daemon=True).start()
    timer = threading.Timer(60.0, lambda: Path(name).unlink(missing_ok=True))
    timer.daemon = True
    timer.start()


def check_loopback(host: str) -> str | None:
    """What to tell the user of an address that others reach; None for loopback."""
    from heretic.ui.access import is_loopback

    if is_loopback(host):
        return None
    return (
        f"Others can reach {host}, and what they read on the way is not encrypted, the token "
        "included. Safer: --host 127.0.0.1 and a tunnel, such as `ssh -L`."
    )
