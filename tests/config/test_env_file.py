"""Files of other programs in the working directory, and marks that editors leave."""

from __future__ import annotations

import codecs
import logging
from pathlib import Path

import pytest

from heretic.config import Settings, load_settings
from heretic.errors import SettingsError

OURS = "HERETIC_N_TRIALS=7\n"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [
        b"NAME=M\xfcller\n",
        b"\xff\xfe\x00",
        b"\x00\x01\x02=\x03\n",
        b"= no name\n'unclosed\nA=\"unclosed\nB=1\n",
        b"A=${HF_TOKEN} ${\n",
        b"\x80\x81\n" * 100,
        "NAME=wert\n".encode("utf-16"),
        b"HERETICAL=\xfc\nMY_HERETIC_X=\xfc\n",
        b"export NAME\xfc\n",
    ],
)
def test_a_dotenv_of_another_program_stops_nothing(
    foreign: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "secret")
    Path(".env").write_bytes(foreign)
    assert Settings(model="m") == Settings.restore({"model": "m"})
    assert not caplog.records


def test_ours_are_found_among_lines_in_another_encoding():
    Path(".env").write_bytes(b"A=\xfc\n" + OURS.encode() + b"B=\xfc 'unclosed\n")
    assert Settings(model="m").n_trials == 7


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding: str):
    Path(".env").write_text(OURS, encoding=encoding)
    assert Settings(model="m").n_trials == 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"HERETIC_SYSTEM_PROMPT=\xfc", r"\.env is not UTF-8 in line 2"),
        (b"HERETIC_SYSTEM_PROMPT=a\0b", r"\.env is not UTF-8 in line 2"),
        (b"export HERETIC_SYSTEM_PROMPT='unclosed", r"\.env, line 2, cannot be read"),
        (b"heretic_system_prompt='unclosed", r"\.env, line 2, cannot be read"),
    ],
)
def test_ours_must_be_readable(line: bytes, said: str):
    Path(".env").write_bytes(b"A=1\n" + line + b"\n")
    with pytest.raises(SettingsError, match=said):
        Settings(model="m")


@pytest.mark.parametrize(
    "text",
    [
        "HERETIC_SYSTEM_PROMPT=${HF_TOKEN}",
        "HERETIC_SYSTEM_PROMPT=${HF_TOKEN:-none}",
        "A=x${HF_TOKEN}\nB=$A ${A}\nHERETIC_SYSTEM_PROMPT=${B}",
    ],
)
def test_it_copies_no_secret_of_the_environment(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "canary")
    Path(".env").write_text(text)
    with pytest.raises(SettingsError, match=r"takes \$\{HF_TOKEN\} from the environment") as caught:
        Settings(model="m")
    assert "canary" not in str(caught.value)


def test_it_may_use_its_own_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A", "outside")
    Path(".env").write_text("A=inside\nHERETIC_SYSTEM_PROMPT=${A} ${NOT_SET:-default}\n")
    assert Settings(model="m").system_prompt == "inside default"


def test_one_that_cannot_be_read_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    Path(".env").write_text(OURS)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with caplog.at_level(logging.WARNING):
        assert Settings(model="m").n_trials == 200
    assert ".env cannot be read and is left out: Permission denied" in caplog.text


def test_a_byte_order_mark_in_toml_and_in_a_secret(monkeypatch: pytest.MonkeyPatch):
    mark = codecs.BOM_UTF8
    Path("config.toml").write_bytes(mark + b"n_trials = 7\r\n")
    Path("own.toml").write_bytes(mark + b"n_trials = 8\n")
    Path("behavior.toml").write_bytes(mark + b"n_startup_trials = 9\n")
    Path("secrets").mkdir()
    Path("secrets/HERETIC_SEED").write_bytes(mark + b"3\r\n")
    monkeypatch.setenv("HERETIC_SECRETS_DIR", "secrets")
    found = Settings(model="m", behavior="behavior.toml")
    assert (found.n_trials, found.n_startup_trials, found.seed) == (7, 9, 3)
    assert load_settings({"model": "m"}, Path("own.toml")).n_trials == 8


def test_a_config_in_another_encoding_is_named():
    Path("config.toml").write_bytes(b'system_prompt = "\xfc"\n')
    with pytest.raises(SettingsError, match=r"config\.toml is not UTF-8 text \(line 1\)"):
        Settings(model="m")


def test_a_config_that_is_a_link_to_nothing_is_missed():
    Path("config.toml").symlink_to("moved.toml")
    with pytest.raises(SettingsError, match=r"config\.toml does not exist"):
        load_settings({"model": "m"})
