"""Another distribution whose package is called `heretic` is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import heretic
from heretic.system.distributions import HERE, mixture


def install(folder: Path, name: str, version: str, *files: str) -> None:
    """Let a folder have that distribution with these files, as far as its record tells."""
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{file},sha256=x,1" for file in (*files, f"{record.name}/RECORD")]
    (record / "RECORD").write_text("\n".join(lines))


@pytest.mark.parametrize("prefix", ["", "heretic"])
def test_another_release_line_of_the_same_name(tmp_path: Path, prefix: str):
    install(tmp_path, "heretic_llm", "1.4.0", "heretic/__init__.py", "heretic/analyzer.py")
    said = mixture(path=[str(tmp_path)], prefix=prefix)
    assert "heretic-llm 1.4.0" in said
    assert str(tmp_path) in said
    assert "python3 -m venv" in said
    assert "\n" not in said


def test_another_name_with_that_package(tmp_path: Path):
    install(tmp_path, "fork_of_it", heretic.__version__ + "1", "heretic/__init__.py")
    assert "fork-of-it" in mixture(path=[str(tmp_path)])
    assert mixture(path=[str(tmp_path)], prefix="heretic") == ""


def test_no_alarm(tmp_path: Path):
    """This release, other packages, an installation that only points to a source, odd paths."""
    install(tmp_path, "heretic_llm", heretic.__version__, "heretic/__init__.py")
    install(tmp_path, "heretic_agent", "1.0.0", "heretic_agent/__init__.py", "not/heretic/x.py")
    install(tmp_path, "heretic_llm", "2.0.0.dev0", "__editable__.heretic_llm-2.0.0.dev0.pth")
    (tmp_path / "heretic_broken-1.dist-info").mkdir()
    archive = tmp_path / "archive.zip"
    archive.touch()
    assert mixture(path=[str(tmp_path), str(archive), str(tmp_path / "absent"), ""]) == ""
    assert mixture() == ""


def test_modules_that_were_copied_into_the_package(tmp_path: Path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "__init__.py").touch()
    for name in ("config.py", "main.py"):
        (tmp_path / name).touch()
    said = mixture(path=[], package=tmp_path)
    assert f"{tmp_path} holds config.py of another distribution." in said
    assert mixture(path=[], package=HERE) == ""


@pytest.mark.parametrize(
    ("arguments", "stream"), [(["runs"], "stderr"), (["--version"], "stdout"), (["--help"], "")]
)
def test_commands_tell_it_once(tmp_path: Path, arguments: list[str], stream: str):
    install(tmp_path / "site", "heretic_llm", "1.4.0", "heretic/__init__.py")
    path = os.pathsep.join([str(HERE.parent), str(tmp_path / "site")])
    done = subprocess.run(
        [sys.executable, "-m", "heretic", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    told = "Warning: Another package named heretic is installed here: heretic-llm 1.4.0, in "
    assert (done.stdout + done.stderr).count(told) == (1 if stream else 0)
    assert not stream or told in getattr(done, stream)
