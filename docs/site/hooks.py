"""Hooks of mkdocs: pages from outside docs/, their links, and a theme that asks for nothing."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.txt",
    "CITATION.cff": "citation.txt",
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "benchmarks").glob("*"))
        if path.suffix in {".md", ".png"}
    },
    "examples/directions.ipynb": "examples/directions.ipynb",
}
"""Files of the repository that are part of the site, and their place there."""

LINK = re.compile(r"(?P<open>\]\()(?P<target>[^)#\s:]+)(?P<rest>#[^)\s]*)?\)")
"""A link to a file, as it stands in the repository."""

CELL = re.compile(r"<td.*?</td>", re.DOTALL)

FETCHED = re.compile(rb"https://unpkg\.com/[\w./@-]+")
"""Scripts that the theme fetches for old browsers and for diagrams, which no page has."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie outside docs/."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links between files of the repository lead to their places on the site."""
    place = page.file.src_uri
    source = next((name for name, own in OUTSIDE.items() if own == place), f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        there = OUTSIDE.get(target) or target.removeprefix("docs/")
        path = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{link['open']}{path}{link['rest'] or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show bars in code of tables as GitHub does, which takes the backslash before them away."""
    return CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Take the addresses of other servers out of the theme's scripts."""
    for script in Path(config.site_dir).glob("assets/javascripts/*.js"):
        script.write_bytes(FETCHED.sub(b"data:text/javascript,", script.read_bytes()))
