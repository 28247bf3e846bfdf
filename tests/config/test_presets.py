"""Presets: which one applies, below what, and what is recorded of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from tests.support import tiny
from tests.support.data_sets import only
from tests.support.zoo import tiny_config

from heretic import pipeline
from heretic.cli.main import heretic
from heretic.cli.options import SettingsOptions
from heretic.config import Settings, load_settings
from heretic.config.presets import Facts, applied, find_preset, read_presets
from heretic.errors import SettingsError
from heretic.events import Event, Notice, Reporter
from heretic.model.templates import ChatRenderer
from heretic.pipeline.recorded import run_settings
from heretic.runs.manifest import RunManifest

GEMMA = ("auto", "bfloat16", "float32")
DEFAULT = ("auto", "float16", "bfloat16", "float32")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without configuration, and no variables of ours."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("HERETIC_")]:
        monkeypatch.delenv(name)


def model(name: str, model_type: str, **more: object) -> str:
    """A folder with a configuration and nothing else."""
    folder = Path("models") / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **more}))
    return str(folder)


def own(text: str) -> Path:
    path = Path("mine.toml")
    path.write_text(text)
    return path


def test_a_family_gets_its_preset():
    assert Settings(model=model("a", "gemma3")).dtypes == GEMMA
    assert Settings(model=model("b", "llava", text_config={"model_type": "gemma2"})).dtypes == GEMMA
    assert Settings(model=model("c", "gemma2", dtype="float16")).dtypes == GEMMA[1:]
    assert Settings(model=model("d", "gemma2", torch_dtype="float16")).dtypes == GEMMA[1:]
    assert Settings(model=model("e", "llama")).dtypes == DEFAULT


def test_a_name_decides_where_the_type_does_not():
    thinking = Settings(model=model("Qwen3-4B-Thinking-2507", "qwen3"))
    assert thinking.chain_of_thought_skips == (("<think>", "<think>\n</think>\n\n"),)
    usual = Settings(model=model("Qwen3-4B", "qwen3"))
    assert len(usual.chain_of_thought_skips) == 4
    other = Settings(model=model("Qwen3-4B-Thinking", "llama"))
    assert other.chain_of_thought_skips == usual.chain_of_thought_skips


def test_a_folder_of_the_hubs_cache_has_the_models_name():
    folder = Path("models--deepseek-ai--DeepSeek-R1-Distill-Llama-8B") / "snapshots" / "0a"
    name = model(str(folder), "llama")
    preset = find_preset("auto", name, None)
    assert preset is not None
    assert preset.name == "deepseek-r1-distill"
    assert find_preset("auto", model("0a", "llama"), None) is None


@pytest.mark.parametrize("place", ["arguments", "command line", "environment", "dotenv", "toml"])
def test_everything_the_user_says_stands_above(place: str, monkeypatch: pytest.MonkeyPatch):
    name = model("m", "gemma2")
    command_line: dict[str, object] = {"model": name}
    if place == "arguments":
        assert Settings(model=name, dtypes=["float16"]).dtypes == ("float16",)
        return
    if place == "command line":
        command_line["dtypes"] = ["float16"]
    elif place == "environment":
        monkeypatch.setenv("HERETIC_DTYPES", "float16")
    elif place == "dotenv":
        Path(".env").write_text("HERETIC_DTYPES=float16\n")
    else:
        Path("config.toml").write_text('dtypes = ["float16"]\n')
    assert load_settings(command_line).dtypes == ("float16",)


def test_the_model_may_be_named_anywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HERETIC_MODEL", model("m", "gemma2"))
    assert load_settings().dtypes == GEMMA
    monkeypatch.setenv("HERETIC_PRESET", "none")
    assert load_settings().dtypes == DEFAULT


def test_tables_are_merged_key_by_key(monkeypatch: pytest.MonkeyPatch):
    name = model("m", "seed_oss")
    assert Settings(model=name).chat_template_kwargs == {"thinking_budget": 0}
    monkeypatch.setenv("HERETIC_CHAT_TEMPLATE_KWARGS__LIST", "[1]")
    both = {"thinking_budget": 0, "list": [1]}
    assert Settings(model=name).chat_template_kwargs == both
    for variable in ("tokenize", "messages"):  # which Heretic itself hands over
        table = f'{{"{variable}": true}}'
        given = CliRunner().invoke(heretic, ["inspect", name, "--chat-template-kwargs", table])
        assert isinstance(given.exception, SettingsError)
        assert f"{variable} is not a variable of a chat template" in str(given.exception)
    more = Settings(model=name, chat_template_kwargs={"thinking_budget": 512})
    assert more.chat_template_kwargs == {**both, "thinking_budget": 512}


def test_a_preset_by_name():
    name = model("m", "llama")
    assert Settings(model=name, preset="seed-oss").chat_template_kwargs == {"thinking_budget": 0}
    assert Settings(model=model("g", "gemma2"), preset="none").dtypes == DEFAULT
    with pytest.raises(SettingsError, match=r"no preset gema\. Did you mean gemma"):
        Settings(model=name, preset="gema")


def test_a_users_own_file_comes_first():
    file = own(
        '[brief]\nmodel_types = ["llama"]\nsystem_prompt = "Be brief."\nn_trials = 7\n'
        '[brief.good_prompts]\nsplit = "train[:9]"\n'
    )
    settings = Settings(model=model("m", "llama"), preset=str(file), n_trials=8)
    assert (settings.system_prompt, settings.n_trials) == ("Be brief.", 8)
    assert only(settings.good_prompts).split == "train[:9]"
    assert only(settings.good_prompts).dataset == "mlabonne/harmless_alpaca"
    assert Settings(model=model("g", "gemma2"), preset=str(file)).dtypes == GEMMA


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[a]\ndtipes = ["x"]', r"setting dtipes in preset a of mine\.toml.*Did you mean dtypes"),
        ('[b]\ngood_prompts = {splt = "x"}', r"good_prompts\.splt in preset b of mine\.toml"),
        ("[c]\nn_trials = -1", r"n_trials in preset c of mine\.toml \(-1\)"),
        ("[d]\ntrust_remote_code = true", r"trust_remote_code in preset d of mine\.toml"),
        ('[e]\nmodel_types = "llama"', r"model_types in preset e of mine\.toml is not a list"),
        ("n_trials = 3", r"n_trials in mine\.toml is not a table"),
        ("[", r"mine\.toml is not valid TOML"),
    ],
)
def test_mistakes_name_the_file_and_the_key(text: str, complaint: str):
    file = own(text)
    with pytest.raises(SettingsError, match=complaint):
        Settings(model=model("m", "llama"), preset=str(file))


def test_a_file_that_is_not_there():
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        Settings(model=model("m", "llama"), preset="none.toml")


@pytest.mark.parametrize("preset", read_presets(), ids=lambda preset: preset.name)
def test_own_presets_hold(preset):
    plain = Settings.restore({"model": "m"})
    settings = plain.replaced(**preset.settings)
    assert settings.fingerprint() != plain.fingerprint(), "changes nothing"
    assert preset.why.endswith(".")
    assert preset.conditions["model_types"]


@pytest.mark.parametrize(
    ("name", "types", "expected"),
    [
        ("nvidia/Llama-3.1-Nemotron-Nano-8B-v1", "llama", "nemotron-by-sentence"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", "nemotron-nas", "nemotron-by-sentence"),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "nemotron-nas", "nemotron-by-command"),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "nemotron_h", "nemotron-by-command"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama", None),
        ("Qwen/QwQ-32B", "qwen2", "deepseek-r1-distill"),
        ("moonshotai/Kimi-Dev-72B", "qwen2", "kimi-reasoning"),
        ("google/gemma-3-4b-it", "gemma3", "gemma"),
        ("google/gemma-2b-it", "gemma", None),
    ],
)
def test_names_as_they_are_published(name: str, types: str, expected: str | None):
    facts = Facts(name.lower(), (types,))
    found = next((preset.name for preset in read_presets() if preset.fits(facts)), None)
    assert found == expected


def test_what_a_preset_sets_is_what_is_recorded():
    name = model("m", "gemma2")
    settings = Settings(model=name)
    assert settings.fingerprint() == Settings(model=name, preset="gemma").fingerprint()
    assert settings.fingerprint() == Settings(model=name, dtypes=GEMMA).fingerprint()
    assert settings.fingerprint() != Settings(model=name, preset="none").fingerprint()
    assert Settings.restore(settings.to_dict()) == settings


def test_a_run_goes_on_without_the_file_of_its_preset():
    file = own('[mine]\nsystem_prompt = "Be brief."\nbatch_size = 3\n')
    settings = Settings(model=model("m", "llama"), preset=str(file))
    manifest = RunManifest(
        model=settings.model,
        digest="",
        seed=1,
        fingerprint=settings.fingerprint(),
        settings=settings.to_dict(),
        found={},
    )
    file.unlink()
    again = run_settings(manifest, SettingsOptions().layers())
    assert again == settings.replaced(preset="auto")  # no file that a run names is read
    assert applied(again) is None
    # Nor do presets that are new since, or files of the user's, get into a run that is there.
    Path("config.toml").write_text(f'model = "{model("g", "gemma2")}"\n')
    assert run_settings(manifest, SettingsOptions().layers()).dtypes == DEFAULT


def test_settings_without_a_model_have_no_preset():
    Path("config.toml").write_text(f'model = "{model("g", "gemma2")}"\n')
    assert load_settings(require_model=False).dtypes == DEFAULT


def test_the_line_says_what_holds():
    name = model("m", "gemma2")
    preset = applied(Settings(model=name))
    assert preset is not None
    assert preset.line() == 'Preset gemma: dtypes = ["auto", "bfloat16", "float32"]'
    overruled = applied(Settings(model=name, dtypes=["float32"]))
    assert overruled is not None
    assert overruled.line() == "Preset gemma: nothing that you have not set yourself"
    mine = own("[x]\nchat_template_kwargs = {a = 1}\nbatch_size = 2\n")
    kept = applied(Settings(model=name, preset=str(mine), chat_template_kwargs={"b": 2}))
    assert kept is not None
    assert kept.line() == 'Preset x of mine.toml: chat_template_kwargs = {"a": 1}, batch_size = 2'


class Lines(Reporter):
    """Keeps what notices say."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.texts.append(event.text)


def test_loading_says_which_preset_applied():
    folder = tiny.folder(Path("m"), "gemma2", head_dim=8)
    reporter = Lines()
    settings = Settings(model=str(folder), batch_size=2)
    assert str(pipeline.load_model(settings, reporter).dtype) != "torch.float16"
    assert any(text.startswith("Preset gemma: dtypes") for text in reporter.texts)
    reporter = Lines()
    found = pipeline.load_model(settings, reporter, dtypes=["float32"])
    assert found.options.dtypes == ("float32",)
    assert any(text.startswith("Preset gemma: dtypes") for text in reporter.texts)
    reporter = Lines()
    pipeline.load_model(settings.replaced(preset="none"), reporter)
    assert not any("Preset" in text for text in reporter.texts)


def test_inspect_shows_it():
    tiny_config("gemma3").save_pretrained("m")
    text = CliRunner(env={"COLUMNS": "160"}).invoke(heretic, ["inspect", "m"]).output
    assert "Preset gemma: dtypes" in text
    data = json.loads(CliRunner().invoke(heretic, ["inspect", "m", "--json"]).output)
    assert data["preset"] == {
        "name": "gemma",
        "file": None,
        "settings": {"dtypes": ["auto", "bfloat16", "float32"]},
    }
    none = CliRunner().invoke(heretic, ["inspect", "m", "--json", "--preset", "none"]).output
    assert json.loads(none)["preset"] is None


def test_variables_reach_the_template():
    template = "{{ messages[-1]['content'] }}|{{ effort }}|{{ enable_thinking }}"
    tokenizer = tiny.tokenizer(template)
    message = [{"role": "user", "content": "x"}]
    assert ChatRenderer(tokenizer, template=template).text(message) == "x||False"
    variables = {"effort": "low", "enable_thinking": True}
    assert ChatRenderer(tokenizer, variables, template=template).text(message) == "x|low|True"


def test_a_model_of_the_hub_is_asked_for_its_configuration_once(tmp_path: Path) -> None:
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            known = self.path == "/org/known/resolve/main/config.json"
            self.send_response(200 if known else 500)
            self.end_headers()
            self.wfile.write(b'{"model_type": "seed_oss"}')

        def log_message(self, *_: object) -> None:
            """No noise."""

    program = """
from heretic.config import Settings
for name in ("org/known", "org/known", "org/broken"):
    print(Settings(model=name).chat_template_kwargs)
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ
            | {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        server.shutdown()
    assert found.stdout.splitlines() == ["{'thinking_budget': 0}"] * 2 + ["{}"]
    assert [path for path in asked if "known" in path] == ["/org/known/resolve/main/config.json"]
    assert sum("broken" in path for path in asked) == 1
