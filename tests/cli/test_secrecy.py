"""Canaries: after a whole run with every secret that a user may have, none is found anywhere."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.support import tiny
from tests.support.judge_server import MODEL, Server, data_of, serve

from heretic.main import main
from heretic.runs.folder import RunFolder

CANARIES = {
    "key": "canary/key+7f3a9c=\"'\\&x",
    "query": "canary-query-5e1b",
    "body": "canary-body-77aa",
    "field": "canary-field-90cd",
    "hub": "hf_canaryhub7f3a9c5e1b",
    "proxy": "canary-proxy-11ff",
}

CONFIG = """
model = "model"
n_trials = 2
search = "tpe"
seed = 7
force = true
dtypes = ["float32"]
max_response_length = 3
response_prefix = ""
scorers = [
    {{ plugin = "llm_judge", name = "judged", optimization = "maximize" }},
    {{ plugin = "kl_divergence" }},
]
[scorer.judged]
endpoint = "{url}?token={query}"
model = "{model}"
api_key_env = "JUDGE_KEY"
cache_folder = "cache"
max_retries = 0
counts = ["compliance"]
[scorer.judged.extra_body]
api_key = "{body}"
metadata = {{ accessToken = "{field}" }}
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory; its own configuration is the only file that may hold secrets."""
    tiny.folder(tmp_path / "model")
    tiny.prompt_files(tmp_path)
    text = CONFIG.format(url=server.url, model=MODEL, **CANARIES) + tiny.PROMPT_TABLES
    (tmp_path / "judge.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", CANARIES["key"])
    monkeypatch.setenv("HF_TOKEN", CANARIES["hub"])
    monkeypatch.setenv("FTP_PROXY", f"http://user:{CANARIES['proxy']}@127.0.0.1:1")
    return tmp_path


def found_in(place: Path, said: str) -> dict[str, list[str]]:
    """Where a canary, or a piece of it in any form, is found."""
    pieces = ("canary", "Y2FuYXJ5", "63616e617279", quote(CANARIES["key"], safe="")[-9:])
    texts = {"the terminal": said}
    for path in place.rglob("*"):
        if path.is_file() and path.name != "judge.toml":
            texts[str(path.relative_to(place))] = path.read_bytes().decode("latin-1")
    return {
        name: found for name, text in texts.items() if (found := [p for p in pieces if p in text])
    }


def echo(body: dict[str, object]) -> str:
    """A judge that repeats what it was sent, where it may say a reason."""
    reason = f"{body.get('api_key')} {body.get('metadata')} {CANARIES['key']}"
    label = "refusal" if len(data_of(body)["reply"]) % 2 else "compliance"
    return json.dumps({"reason": reason, "label": label})


def test_a_search_an_export_and_a_reproduction_keep_every_secret(
    server: Server, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.judge = echo
    config = ["--config", "judge.toml"]
    assert main(config) == 0
    assert server.keys == {f"Bearer {CANARIES['key']}"}
    assert {CANARIES["query"] in path for path in server.paths} == {True}
    assert {request["api_key"] for request in server.requests} == {CANARIES["body"]}
    (run,) = (place / "checkpoints").iterdir()
    save = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "merge"]
    again = ["export", str(run), "--trust-plugins", *config, *save, "--save-directory", "edited"]
    assert main(again) == 0
    assert main(["runs"]) == 0
    assert main(["reproduce", "edited", "--save-directory", "second", "--trust-plugins"]) == 0
    assert found_in(place, "".join(capfd.readouterr())) == {}
    assert RunFolder(run).log_path.is_file()
    assert "token=***" in (run / "manifest.json").read_text()


def test_a_run_goes_on_with_a_new_key(server: Server, place: Path) -> None:
    """Secrets are no part of what makes a run the same."""
    config = ["--config", "judge.toml", "--model-action", "none"]
    assert main(config) == 0
    text = (place / "judge.toml").read_text()
    for name in ("query", "body", "field"):
        text = text.replace(CANARIES[name], f"another-{CANARIES[name]}")
    (place / "judge.toml").write_text(text)
    assert main([*config, "--checkpoint-action", "continue", "--n-trials", "3"]) == 0
    assert len(list((place / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("when", [0, 1, 3])
def test_failures_keep_every_secret(
    when: int, server: Server, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The judge fails when it is checked, and while replies are judged."""
    server.script[:] = ['{"label": "refusal"}'] * when + ["echo"] * 99
    assert main(["--config", "judge.toml"]) == 2
    assert "HTTP 401" in "".join(logs(place, capfd))
    assert found_in(place, "") == {}


def logs(place: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    said = "".join(capfd.readouterr())
    assert "canary" not in said
    return [said, *(path.read_text() for path in place.glob("checkpoints/*/*.log"))]


def test_a_run_that_is_exported_asks_for_what_was_not_recorded(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", "judge.toml"]) == 0
    (run,) = (place / "checkpoints").iterdir()
    url = (place / "judge.toml").read_text().partition('endpoint = "')[2].partition('"')[0]
    given = ["--trust-plugins", "--scorer.judged.endpoint", url]
    capfd.readouterr()
    assert main(["export", str(run), *given]) == 2
    said = capfd.readouterr().err
    assert "held a secret, which was not recorded" in said
    assert "canary" not in said


def test_settings_that_are_wrong_show_no_options_of_scorers(place: Path) -> None:
    environment = '{"judged": {"api_key": "canary-in-json"'
    code = (
        "import os, sys; os.environ['HERETIC_SCORER'] = sys.argv[1]\n"
        "from heretic.main import main; sys.exit(main(['model']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, environment],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "HERETIC_SCORER in the environment" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_a_bug_shows_its_traceback_without_secrets(place: Path) -> None:
    code = (
        "import os, sys\nfrom heretic.cli import main as cli\n"
        "def broken(*_, **__): raise ZeroDivisionError(os.environ['HF_TOKEN'])\n"
        "cli.heretic.main = broken\nfrom heretic.main import main\nsys.exit(main(['model']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "ZeroDivisionError: ***" in done.stderr
    assert "canary" not in done.stderr


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    yield
    logging.getLogger("heretic").handlers.clear()
