"""Workers that upload, and make files for llama.cpp: as the command line does, with its checks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support import convertible, export_case, hub_server, worker_case
from tests.support.hub_server import Hub

from heretic.worker.client import RequestError, WorkerProcess
from heretic.worker.protocol import Open, Save, Search, Upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serve() as running:
        yield running


def logged_out(place: Path, hub: Hub) -> dict[str, str]:
    """An environment whose Hub is the stand-in, and whose token would lie in `place/token`."""
    import os

    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN_PATH": str(place / "token"),
    }


async def searched(
    place: Path, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> tuple[WorkerProcess, int]:
    """A worker that has found trials, and the number of one of them."""
    worker = await WorkerProcess.start(folder=place, environment=environment)
    await worker.request(Open(settings=dict(settings)))
    await worker.request(Search())
    await worker.until("ready")
    return worker, worker_case.only_run(place).read_trials()[0].number


def test_an_upload_takes_the_login_of_the_machine_and_never_shows_it(
    tmp_path: Path, hub: Hub
) -> None:
    place = worker_case.make_place(tmp_path)
    settings = worker_case.settings_in(place, n_trials=1)

    async def work() -> None:
        worker, trial = await searched(place, settings, logged_out(place, hub))
        try:
            with pytest.raises(RequestError, match="hf auth login"):
                await worker.request(Upload(trial=trial, repository="tester/edited"))
            with pytest.raises(RequestError, match="not a valid repository id"):
                await worker.request(Upload(trial=trial, repository="a/b/c"))
            assert hub.repositories == {}
            (place / "token").write_text(hub_server.WRITE_TOKEN)
            found = await worker.request(Upload(trial=trial, repository="edited"))
            assert found == {"url": f"{hub.url}/tester/edited"}
        finally:
            await worker.terminate(patience=0, grace=5)

    asyncio.run(asyncio.wait_for(work(), 600))
    repository = hub.repositories["tester/edited"]
    assert repository.private
    assert "model.safetensors" in repository.files
    run = worker_case.only_run(place).path
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert hub_server.WRITE_TOKEN.encode() not in written


@pytest.mark.demo
def test_gguf_files_lie_beside_the_model_that_is_saved(tmp_path: Path) -> None:
    convertible.folder(tmp_path / "Tiny-Base")
    export_case.prompt_files(tmp_path)
    settings = worker_case.settings_in(tmp_path, n_trials=1)
    saved = tmp_path / "saved"

    async def work() -> None:
        worker, trial = await searched(tmp_path, settings)
        try:
            wrong = Save(trial=trial, folder=str(saved), strategy="gguf", gguf_types=["q9"])
            with pytest.raises(RequestError, match="no GGUF type 'q9'"):
                await worker.request(wrong)
            assert not saved.exists()  # said before work
            right = Save(trial=trial, folder=str(saved), strategy="gguf", gguf_types=["f16, q8_0"])
            found = (await worker.request(right))["gguf"]
            assert found["folder"] == f"{saved}-gguf"
            assert [row["type"] for row in found["files"]] == ["f16", "q8_0"]
            assert {one["name"] for one in found["files"][0]["scores"]} >= {"kl_divergence"}
        finally:
            await worker.terminate(patience=0, grace=5)

    asyncio.run(asyncio.wait_for(work(), 600))
    made = tmp_path / "saved-gguf"
    assert {path.suffix for path in made.iterdir()} >= {".gguf", ".json"}
    assert json.loads((made / "gguf.json").read_text())["name"] == "saved"
    assert (saved / "model.safetensors").is_file()
