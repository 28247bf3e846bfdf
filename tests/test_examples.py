"""The example notebooks run from top to bottom, offline, and come out as their text says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from heretic.refusals.detector import classify

NOTEBOOK = Path(__file__).parents[1] / "examples" / "directions.ipynb"

RESULTS = """
import json
print("RESULTS" + json.dumps({
    "cosines": cosines.tolist(),
    "words": [[token.text for token in one.promoted] for one in words],
    "along": dict(zip(text.tokens, [value / text.scale for value in text.values])),
    "replies": [before[question], answered, before[request], declined],
    "pictures": {path.name: path.stat().st_size for path in pictures.iterdir()},
    "original": model.is_original,
}))
"""


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_is_stored_without_outputs():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


@pytest.mark.slow
@pytest.mark.demo
def test_from_directions_to_a_steered_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    client = NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 3
    found = json.loads(text_of(notebook.cells[-1]).rpartition("RESULTS")[2])
    assert len(found["cosines"]) == 30
    assert found["cosines"][25][26] > 0.8 > 0.3 > abs(found["cosines"][25][2])
    assert any("astronom" in word.lower() for word in found["words"][-1])
    assert found["along"][" Neptune"] > 0.4 > found["along"][" many"]
    refuses = ["refusal" in classify(reply).label for reply in found["replies"]]
    assert refuses == [True, False, False, True]
    assert found["original"]
    assert min(found["pictures"].values()) > 5000
