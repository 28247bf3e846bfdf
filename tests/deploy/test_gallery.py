"""The gallery of shared reports: what it lists, and what its frames may do."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy.gallery import app as gallery
from starlette.testclient import TestClient


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gallery, "REPORTS", tmp_path)
    return tmp_path


@pytest.fixture
def client() -> TestClient:
    return TestClient(gallery.app)


def written(folder: Path, name: str, title: str = "A run") -> Path:
    path = folder / name
    path.write_text(f"<!doctype html><title>{title}</title><p>figures")
    return path


def test_an_empty_gallery_says_so(folder: Path, client: TestClient):
    assert "There are no reports yet" in client.get("/").text


def test_reports_are_listed_and_framed_without_rights(folder: Path, client: TestClient):
    written(folder, "one.html", "Heretic: tiny")
    assert '<a href="show/one">Heretic: tiny</a>' in client.get("/").text
    shown = client.get("/show/one")
    assert 'sandbox="allow-scripts" src="../report/one"' in shown.text
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    report = client.get("/report/one")
    assert report.text.endswith("<p>figures")
    policy = report.headers["content-security-policy"].split("; ")
    assert policy == [
        "sandbox allow-scripts",
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert report.headers["x-content-type-options"] == "nosniff"


def test_titles_are_text(folder: Path, client: TestClient):
    written(folder, "one.html", "&lt;script&gt;alert(1)&lt;/script&gt;")
    for address in ("/", "/show/one"):
        text = client.get(address).text
        assert "<script>" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_report_without_a_title_goes_by_its_file(folder: Path, client: TestClient):
    (folder / "bare.html").write_text("no title")
    assert '<a href="show/bare">bare</a>' in client.get("/").text


def test_what_is_no_report_is_not_shown(
    folder: Path, client: TestClient, tmp_path_factory: pytest.TempPathFactory
):
    outside = written(tmp_path_factory.mktemp("elsewhere"), "secret.html")
    (folder / "link.html").symlink_to(outside)
    written(folder, "odd name.html")
    written(folder, ".hidden.html")
    written(folder, "notes.txt")
    (folder / "folder.html").mkdir()
    with (folder / "large.html").open("wb") as file:
        file.truncate(gallery.MOST_BYTES + 1)
    assert "There are no reports yet" in client.get("/").text
    for name in ("link", "odd%20name", ".hidden", "large", "folder", "..%2Fsecret", "notes.txt"):
        assert client.get(f"/show/{name}").status_code == 404
        assert client.get(f"/report/{name}").status_code == 404


def test_nothing_can_be_changed(folder: Path, client: TestClient):
    written(folder, "one.html")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/report/one").status_code == 405
