"""The site of the documents: built strictly, and read without asking anybody for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
"""An address on another server."""

IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?(?P<address>[^'\")\s;]+)")
HOSTS = re.compile(r"unpkg\.com|jsdelivr|cdnjs|googleapis|gstatic|googletagmanager")
"""Where themes and their scripts fetch fonts and libraries from."""

LOADING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
"""Attributes by which a page loads something; a link that is followed by the reader does not."""

NOT_LOADED = {"canonical", "prev", "next", "license", "author"}


class Requests(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.shows_a_repository = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = LOADING.get(tag, ())
        if tag == "link" and not NOT_LOADED & set(given.get("rel", "").split()):
            names = ("href",)
        self.addresses += [given[name] for name in names if name in given]
        self.addresses += IN_STYLES.findall(given.get("style", ""))
        self.shows_a_repository |= given.get("data-md-component") == "source"

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.addresses += IN_STYLES.findall(data)


def requests_of(html: str) -> Requests:
    found = Requests()
    found.feed(html)
    return found


def build(source: Path, folder: Path) -> tuple[int, str]:
    """Exit status and output of a strict build; --quiet would not count warnings."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=source,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    status, said = build(ROOT, folder)
    assert status == 0, said
    assert "WARNING" not in said
    return folder


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path):
    text = "# Here\n\n[page](nowhere.md) [anchor](#nothing)\n"
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n"
    for name, content in (("docs/index.md", text), ("docs/lost.md", "# Lost\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    status, said = build(tmp_path, tmp_path / "site")
    assert status != 0
    assert "Aborted with 3 warnings in strict mode" in said  # lost.md is in no navigation


def pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")


def test_every_document_is_a_page(site: Path):
    names = {name for name, _ in pages(site)}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= names
    assert {"index.html", "changelog.html", "conduct.html", "security.html"} <= names


def test_pages_load_nothing_from_elsewhere(site: Path):
    for name, html in pages(site):
        found = requests_of(html)
        assert found.addresses, name  # styles and scripts at least
        assert [address for address in found.addresses if OUTSIDE.match(address)] == [], name
        assert not found.shows_a_repository, name  # its stars are asked for at a server
        assert 'class="mermaid"' not in html, name


def test_tables_show_bars_without_their_escapes(site: Path):
    settings = (site / "settings.html").read_text(encoding="utf-8")
    assert "&lt;|channel|&gt;analysis" in settings
    assert "\\|" not in "".join(re.findall(r"<td.*?</td>", settings, re.DOTALL))


def test_what_pages_load_is_there(site: Path):
    html = (site / "index.html").read_text(encoding="utf-8")
    local = [address.split("#")[0].split("?")[0] for address in requests_of(html).addresses]
    needed = [address for address in local if address and not address.startswith("data:")]
    assert [address for address in needed if not (site / address).is_file()] == []


def test_styles_and_scripts_load_nothing_from_elsewhere(site: Path):
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    scripts = [path.read_text(encoding="utf-8") for path in site.rglob("*.js")]
    assert len(styles) >= 3
    assert len(scripts) >= 3
    addresses = [address for text in styles for address in IN_STYLES.findall(text)]
    assert [address for address in addresses if OUTSIDE.match(address)] == []
    assert [found for text in scripts for found in HOSTS.findall(text)] == []


def test_links_of_the_readme_lead_to_pages_of_the_site(site: Path):
    html = (site / "index.html").read_text(encoding="utf-8")
    for place in ("first-run.html", "conduct.html", "license.txt", "benchmarks/search.html"):
        assert f'href="{place}"' in html, place
        assert (site / place).is_file(), place
    assert 'src="demo-report.png"' in html
    nested = (site / "trust.html").read_text(encoding="utf-8")
    assert 'href="benchmarks/trust.html"' in nested


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<link rel="preconnect" href="https://example.org">',
        '<img src="x.png" srcset="https://example.org/x.png 2x">',
        '<p style="background: url(https://example.org/x.png)">',
        "<style>@import 'https://example.org/x.css';</style>",
    ],
)
def test_a_request_would_be_found(html: str):
    assert any(OUTSIDE.match(address) for address in requests_of(html).addresses)


def test_links_for_readers_are_none():
    html = '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org">'
    assert requests_of(html).addresses == []
