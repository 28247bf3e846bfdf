"""Control vectors: the file is llama.cpp's, and does there what steering does here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.support import tiny_gguf
from tests.support.session import session_of

from heretic.errors import HereticError, ModelError, RunError
from heretic.gguf.control import read_control_vector, write_control_vector
from heretic.gguf.llama import LlamaFile
from heretic.main import main
from heretic.model.core import Model
from heretic.runs.steering import mean_differences

ROWS = [[5, 6, 7, 8], [9, 10, 11], [100]]


def test_llama_cpp_adds_what_steering_adds(tmp_path: Path) -> None:
    from heretic.model.steering import Steering

    model = tiny_gguf.model().eval()
    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(layers + 1, hidden, generator=generator)
    vectors[:2] = 0  # llama.cpp cannot steer the first layer
    path = tmp_path / "control.gguf"
    write_control_vector(path, vectors.numpy(), "tiny")
    read = read_control_vector(path)
    assert np.array_equal(read, vectors[2:].numpy())
    with LlamaFile(tiny_gguf.write(tmp_path / "model.gguf", model)) as file:
        plain = file.logits(ROWS)
        file.steer(read)
        steered = file.logits(ROWS)

    def own(added: torch.Tensor) -> np.ndarray:
        with torch.no_grad(), Steering(model.model.layers, added).installed():
            return np.stack([model(torch.tensor([row])).logits[0, -1].numpy() for row in ROWS])

    # llama.cpp keeps keys and values in half precision.
    assert np.abs(steered - own(vectors)).max() < 0.02
    assert np.abs(steered - plain).max() > 0.5
    earlier = torch.cat([vectors[:1], vectors[2:], vectors[1:2]])  # each one layer too early
    assert np.abs(steered - own(earlier)).max() > 0.5


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "control.gguf"
    write_control_vector(path, np.ones((4, 8), np.float32), "org/name")
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    assert not list(tmp_path.glob(".*"))


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf", tiny_gguf.model())
    with pytest.raises(HereticError, match="is no control vector"):
        read_control_vector(model)
    with LlamaFile(model) as file, pytest.raises(ModelError, match="A control vector for"):
        file.steer(np.ones((1, 3), np.float32))
    with pytest.raises(HereticError, match="Cannot write"):
        write_control_vector(model / "below.gguf", np.ones((4, 8), np.float32), "x")


def test_a_run_keeps_the_lengths_of_its_directions(tmp_path: Path) -> None:
    session = session_of(tmp_path, orthogonalize_direction=False)
    model, prompts = session.model, session.prompts
    bad, good = (model.get_residual_means(rows) for rows in (prompts.bad, prompts.good))
    wanted = (bad - good).numpy()
    wanted[0] = 0
    assert np.allclose(mean_differences(session.folder), wanted, atol=1e-4)


def test_lengths_are_of_what_is_left_beside_the_good_prompts(tmp_path: Path) -> None:
    session = session_of(tmp_path, orthogonalize_direction=True, max_rank=2)
    model, prompts = session.model, session.prompts
    bad, good = (model.get_residual_means(rows) for rows in (prompts.bad, prompts.good))
    axis = good / good.norm(dim=-1, keepdim=True)
    difference = bad - good
    left = difference - (difference * axis).sum(-1, keepdim=True) * axis
    left[0] = 0
    assert np.allclose(mean_differences(session.folder), left.numpy(), atol=1e-4)


def test_the_command_writes_a_runs_directions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = session_of(tmp_path)
    run, path = str(session.folder.path), tmp_path / "control.gguf"
    assert main(["directions", run, "-o", str(path)]) == 0
    assert "layers 1 to" in capsys.readouterr().out
    assert np.array_equal(read_control_vector(path), mean_differences(session.folder)[2:])
    assert main(["directions", run, "-o", str(path), "--trial-index", "0"]) == 2
    assert "its edit is no constant per layer" in capsys.readouterr().err


def test_a_run_without_lengths_is_refused(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    with session.folder.lock():
        session.folder.write_file("report.json", (session.folder.path / "report.json").read_text())
    (session.folder.path / "report.json").unlink()
    with pytest.raises(RunError, match="has kept no lengths"):
        mean_differences(session.folder)


def test_a_chat_is_steered_by_the_runs_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path)
    steered, added = Model.steered, []

    def recorded(model: Model, vectors: torch.Tensor, strength: float) -> Any:
        added.append((vectors, strength))
        return steered(model, vectors, strength)

    monkeypatch.setattr(Model, "steered", recorded)
    lines = iter(["Hello", "/strength -0.5", "Hello", "exit"])
    monkeypatch.setattr("heretic.cli.menu.chat._read_line", lambda: next(lines))
    assert main(["chat", str(session.folder.path), "--directions"]) == 0
    assert [strength for _, strength in added] == [0.0, -0.5]
    for vectors, _ in added:
        assert np.array_equal(vectors.numpy(), mean_differences(session.folder))


def test_a_chat_by_directions_needs_a_run_and_no_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(session_of(tmp_path).folder.path)
    for named in ("org/model", "http://127.0.0.1:1/v1", str(tmp_path)):
        assert main(["chat", named, "--directions"]) == 2
        assert "--directions is for a run" in capsys.readouterr().err
    assert main(["chat", run, "--directions", "--trial-index", "0"]) == 2
    assert "exclude each other" in capsys.readouterr().err
