"""Wheel and source archive hold everything: built, installed elsewhere, demo files read there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import heretic
from tests.soak import install

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "heretic"
ADAPTER_LIMIT = 6 * 1024 * 1024

FIRST_STEP = """
import json, sys
from pathlib import Path
import heretic
from tests.soak import install
installed = Path(sys.argv[1]).resolve()
assert installed in Path(heretic.__file__).resolve().parents, heretic.__file__

from heretic.config import DatasetSpecification
from heretic.demo.data import ADAPTER_FOLDER, adapter_digest, prompt_file
from heretic.prompts import load
from safetensors import safe_open

for name, least in (("topic", 400), ("ordinary", 400)):
    prompts = load(DatasetSpecification(dataset=str(prompt_file(f"{name}_train"))), None)
    assert len(prompts) >= least, (name, len(prompts))
for name in ("topic_test", "ordinary_test", "near_topic_test"):
    prompts = load(DatasetSpecification(dataset=str(prompt_file(name)), split="train[:100]"), None)
    assert len(prompts) == 100, (name, len(prompts))
config = json.loads((ADAPTER_FOLDER / "adapter_config.json").read_text())
assert config["peft_type"] == "LORA"
with safe_open(ADAPTER_FOLDER / "adapter_model.safetensors", framework="numpy") as tensors:
    assert any("lora_A" in key for key in tensors.keys())
assert len(adapter_digest()) == 64
print("read")
"""


OF_AN_OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
"""What a `make` that runs these tests tells the `make` that a test runs: options, depth, slots."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if key not in OF_AN_OUTER_MAKE}
    result = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that is built from that archive.

    Both come from a copy, so that nothing left from earlier builds gets in.
    """
    copy = tmp_path_factory.mktemp("copy")
    for path in ROOT.glob("*"):
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("src/heretic", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", copy / "dist", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this distribution alone; what it needs comes from the running environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


def test_wheel_holds_every_file_of_the_package(wheel: Path):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= packed
    foreign = {name for name in packed if not name.startswith(("heretic/", "heretic_llm-"))}
    assert not foreign


def test_source_archive_holds_what_the_readme_names(dist: Path):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"LICENSE", "README.md", "constraints.txt", "constraints-torch.txt"} <= names
    linked = re.findall(r"\]\(((?:docs/)?[\w-]+\.\w+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert {"docs/installing.md", "docs/demo-report.png", "CITATION.cff"} <= set(linked) <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_package_index_would_take_both(dist: Path, tmp_path: Path):
    files = sorted(dist.iterdir())
    assert len(files) == 2
    said = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=tmp_path)
    assert said.count("PASSED") == 2


def test_kinds_of_data_files_are_packed(wheel: Path):
    packed = zipfile.ZipFile(wheel).namelist()
    for pattern in (
        "heretic/py.typed",
        "heretic/config/presets.toml",
        "heretic/behaviors/slop/config.toml",
        "heretic/behaviors/slop/requests_train.txt",
        "heretic/export/documents/card.md.jinja",
        "heretic/scorers/phrases.txt",
        "heretic/demo/adapter/adapter_model.safetensors",
    ):
        assert pattern in packed
    assert any(name.endswith(".jsonl") for name in packed)


def test_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(metadata_name).decode())
        (license_name,) = (name for name in names if name.endswith("/licenses/LICENSE"))
        text = archive.read(license_name).decode()
    assert metadata["Name"] == "heretic-llm"
    assert metadata["Version"] == heretic.__version__
    assert metadata["License-Expression"] == "AGPL-3.0-or-later"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_demo_adapter_is_small():
    size = sum(path.stat().st_size for path in (SOURCE / "demo" / "adapter").rglob("*"))
    assert 0 < size <= ADAPTER_LIMIT


def test_first_step_of_the_demo_runs_from_the_installed_package(installed: Path, tmp_path: Path):
    output = run(
        sys.executable,
        "-c",
        FIRST_STEP,
        installed,
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(installed), str(ROOT)]),  # for the list of data files
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert output.splitlines()[-1] == "read"


def test_installed_command_runs(installed: Path, tmp_path: Path):
    command = installed / "bin" / "heretic"
    output = run(command, "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert heretic.__version__ in output


CONSTRAINTS = ("constraints.txt", "constraints-torch.txt")
STACK = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
"""PyTorch and the packages that only it brings."""


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_pin_everything_exactly_and_name_no_host(file: str):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in found)
    assert not any("://" in line or line.startswith("-") for line in lines)
    assert len(pins(file)) == len(found)


def test_pytorch_is_pinned_apart_from_all_else():
    users, torchs = (pins(file) for file in CONSTRAINTS)
    assert torchs["torch"] == "2.13.0"
    assert not users.keys() & torchs.keys()
    assert not [name for name in users if STACK.fullmatch(name)]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment without anything in it, which the Makefile takes for its own."""
    folder = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=tmp_path)
    (folder / ".made").touch()
    return folder


def put_torch(environment: Path, version: str) -> None:
    """Let an environment have a PyTorch of that version, as far as pip and imports can tell."""
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").touch()
    record = packages / f"torch-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    (record / "INSTALLER").write_text("pip\n")
    (record / "RECORD").write_text("")


@pytest.mark.parametrize("version", ["2.15.0+cu130", "2.13.0+cpu", "2.9.1+rocm6.4"])
def test_what_users_are_told_to_install_keeps_any_build_of_pytorch(
    environment: Path, tmp_path: Path, version: str
):
    assert "pip install . -c constraints.txt" in (ROOT / "README.md").read_text("utf-8")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    (wanted,) = (line for line in needed if line.startswith("torch>"))
    put_torch(environment, version)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    command = ("install", "--no-index", "--dry-run", wanted, "-c", ROOT / "constraints.txt")
    bare = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": ""}
    assert "Would install" not in run(*pip, *command, cwd=tmp_path, **bare)


@pytest.mark.parametrize("target", [".user", ".dev"])
@pytest.mark.parametrize("there", [False, True])
def test_the_makefile_pins_pytorch_only_where_there_is_none(
    environment: Path, target: str, there: bool
):
    if there:
        put_torch(environment, "2.15.0+cu130")
    goal = environment / target
    said = run("make", goal, f"VENV={environment}", "PIP=echo", "EXTRAS=dev", cwd=ROOT)
    command = said.splitlines()[-1]
    assert "-c constraints.txt" in command
    assert ("-c constraints-torch.txt" in command) is not there


def test_exceptions_of_the_audit_have_reasons():
    lines = (ROOT / "audit-exceptions.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    known = {*pins(CONSTRAINTS[0]), *pins(CONSTRAINTS[1])}
    for entry in entries:
        match = re.fullmatch(r"[A-Z]+-[\w-]+ (?P<name>[\w.-]+): .{20,}", entry)
        assert match, entry
        assert match["name"] in known, entry


TEXTS = {".jsonl", ".cff", ".ipynb", ".jinja", ".md", ".py", ".toml", ".txt", ".yml", ""}
INSTALLS = re.compile(r"\binstall\b[^\n]*\bheretic-llm\b(?!\.whl)")
"""Advice to fetch a package that is another project's."""


def test_nothing_tells_to_install_the_other_project_of_that_name():
    rooms = [
        ROOT / name for name in ("src", "docs", "tests", "benchmarks", "examples", "deploy", ".ci")
    ]
    paths = [*ROOT.glob("*"), *(path for room in rooms for path in room.rglob("*"))]
    files = [path for path in paths if path.is_file() and path.suffix in TEXTS]
    assert len(files) > 400
    advice = {path: INSTALLS.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {path.name: lines for path, lines in advice.items() if lines} == {}
    assert INSTALLS.search("pip install 'heretic" + "-llm[judge]'")


def test_readme_says_whose_that_name_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = readme[readme.index("**What it is not.**") :].partition("## ")[0]
    assert "`heretic-llm` of PyPI" in said
    assert "Philipp" in said
    assert heretic.__version__ in said


def test_the_release_check_names_interpreters_that_are_not_here(
    capsys: pytest.CaptureFixture[str],
):
    assert install.main(["python9.99", "/nowhere/python3"]) == 1
    said = capsys.readouterr().out
    assert said == "python9.99: not found, not tried\n/nowhere/python3: not found, not tried\n"
    command = run("make", "-n", "release-check", "RELEASE_PYTHONS=a b", "VENV=x", cwd=ROOT)
    assert command.splitlines()[-1] == "x/bin/python -m tests.soak.install a b"
