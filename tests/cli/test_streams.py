"""Standard streams that are closed, full or broken cost no results, and losses are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.terminal import arguments, environment

HERETIC = [sys.executable, "-m", "heretic"]
SAVE = {
    "trial_index": 3,
    "model_action": "save",
    "export_strategy": "merge",
    "save_directory": "out",
}
ALL_CLOSED = "<&- >&- 2>&-"


def shell(folder: Path, command: list[str], redirections: str) -> subprocess.CompletedProcess[str]:
    """Run a command by bash with redirections."""
    line = f'set -o pipefail; "$@" {redirections}'
    return subprocess.run(
        ["bash", "-c", line, "bash", *command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    row = json.dumps({"prompt": "Why?", "response": "I'm sorry, but I can't help with that."})
    (tmp_path / "replies.jsonl").write_text(f"{row}\n" * 3000)
    return tmp_path


PRINTING = [
    ["config"],
    ["runs"],
    ["--help"],
    ["classify", "replies.jsonl"],
]


class TestOnlyPrinted:
    """Commands that have no other result than what they print."""

    @pytest.mark.parametrize("command", PRINTING, ids=" ".join)
    def test_what_is_lost_is_told(self, replies: Path, command: list[str]) -> None:
        full = shell(replies, [*HERETIC, *command], ">/dev/full")
        assert full.returncode == 2
        assert full.stderr.splitlines()[-1] == (
            "Standard output was not written: No space left on device."
        )
        assert "Traceback" not in full.stderr
        closed = shell(replies, [*HERETIC, *command], ">&-")
        assert closed.returncode == 2
        assert closed.stderr.splitlines()[-1] == "Standard output was not written: it is closed."
        silent = shell(replies, [*HERETIC, *command], ALL_CLOSED)
        assert (silent.returncode, silent.stdout, silent.stderr) == (2, "", "")

    @pytest.mark.parametrize("command", PRINTING, ids=" ".join)
    def test_a_reader_that_has_enough_is_no_loss(self, replies: Path, command: list[str]) -> None:
        found = shell(replies, [*HERETIC, *command], "| head -1")
        assert found.returncode == 0
        assert len(found.stdout.splitlines()) == 1
        assert "Traceback" not in found.stderr
        assert "Broken pipe" not in found.stderr

    def test_errors_keep_their_status_where_they_cannot_be_printed(self, tmp_path: Path) -> None:
        for lost in ("2>&-", "2>/dev/full", ALL_CLOSED):
            found = shell(tmp_path, [*HERETIC, "export", "nothing"], lost)
            assert (found.returncode, found.stderr) == (2, "")


@pytest.mark.parametrize(
    "redirections",
    [
        ">&-",
        ">/dev/full",
        "2>&-",
        "2>/dev/full",
        ALL_CLOSED,
        ">/dev/full 2>/dev/full",
        "| true",
        "</dev/null | head -1",
    ],
)
def test_a_save_that_was_asked_for_is_made(tmp_path: Path, redirections: str) -> None:
    found = shell(tmp_path, [sys.executable, *arguments("menu", SAVE)], redirections)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "abliteration_params.json").is_file()
    assert "Traceback" not in found.stderr


def test_a_search_whose_output_nobody_reads_goes_on(tmp_path: Path) -> None:
    found = shell(tmp_path, [sys.executable, *arguments("search", {})], "| head -1")
    assert found.returncode == 0, found.stderr


def test_closed_descriptors_are_not_given_to_files(tmp_path: Path) -> None:
    """Else what a library prints would end up in the next file that is opened."""
    program = (
        "import os\n"
        "from heretic.cli.streams import lasting_streams\n"
        "with lasting_streams():\n"
        "    with open('weights', 'wb') as file:\n"
        "        file.write(b'weights')\n"
        "        file.flush()\n"
        "        for number in (0, 1, 2):\n"
        "            try:\n"
        "                os.write(number, b'noise')\n"
        "            except OSError:\n"
        "                pass\n"
    )
    shell(tmp_path, [sys.executable, "-c", program], ALL_CLOSED)
    assert (tmp_path / "weights").read_bytes() == b"weights"


def test_a_pipe_that_does_not_block_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from heretic.cli.streams import lasting_streams\n"
        "os.set_blocking(1, False)\n"
        "with lasting_streams():\n"
        "    print('x' * 1_000_000)\n"
    )
    found = shell(tmp_path, [sys.executable, "-c", program], "| (sleep 0.3; wc -c)")
    assert (found.returncode, found.stdout.strip()) == (0, "1000001"), found.stderr
