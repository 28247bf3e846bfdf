"""Damaged and hostile input: whatever is read, nothing but `HereticError` comes out.

`python -m tests.soak.fuzz --count 100000` shares the inputs out among `TARGETS`, each in a process
of its own, since a parser may end the interpreter. `tests/test_fuzz.py` runs a few of each.
"""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import io
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from heretic.errors import HereticError
from tests.support import foreign, fuzzing, tiny

LONGEST = 20
"""Seconds that one input may take."""

OnFault = Callable[[BaseException, Any], None]

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
RUN = EARLIER / "checkpoints" / "model-c3edcba1f056"


@dataclass(frozen=True)
class Target:
    """Something that reads input.

    Attributes:
        inputs: What it is given.
        read: Reads one input, in an empty working directory; what it returns does not matter.
        share: Its part of all inputs.
    """

    inputs: Callable[[], st.SearchStrategy[Any]]
    read: Callable[[Any], object]
    share: float


# --- what reads -----------------------------------------------------------------------------


def _each(*calls: Callable[[], object]) -> None:
    """Call all of them; the first error that a user can fix is raised again at the end."""
    first: HereticError | None = None
    for call in calls:
        try:
            call()
        except HereticError as error:
            first = first or error
    if first is not None:
        raise first


def _settings_used(settings: Any) -> None:
    """What is done with settings before anything is loaded."""
    from heretic.config import Settings
    from heretic.export.request import ExportOptions
    from heretic.model.reading import ModelOptions
    from heretic.records.options import options_of

    written = json.loads(json.dumps(settings.to_dict(), allow_nan=False, ensure_ascii=False))
    json.dumps(written, ensure_ascii=False).encode()
    assert Settings.restore(written) == settings
    settings.fingerprint()
    options_of(ModelOptions, settings)
    options_of(ExportOptions, settings)


def _settings_file(data: bytes) -> None:
    from heretic.config.settings import load_settings

    Path("given.toml").write_bytes(data)
    _settings_used(load_settings({"model": "m"}, Path("given.toml")))


def _foreign_file(data: bytes) -> None:
    from heretic.config.migrate import as_toml, migrate
    from heretic.config.settings import load_settings

    theirs, ours = Path("theirs.toml"), Path("ours.toml")
    theirs.write_bytes(data)
    found = migrate(theirs)
    ours.write_text(as_toml(found, theirs), encoding="utf-8")
    if found.values:
        _settings_used(load_settings({"model": "m"}, ours, tell=lambda remark: None))


def _preset_file(data: bytes) -> None:
    from heretic.config.behaviors import read_behavior
    from heretic.config.presets import read_presets

    Path("given.toml").write_bytes(data)
    _each(lambda: read_presets(Path("given.toml")), lambda: read_behavior(Path("given.toml")))


def _environment(variables: Mapping[str, str]) -> None:
    from heretic.config.settings import load_settings

    before = dict(os.environ)
    os.environ.update(variables)
    try:
        _settings_used(load_settings({"model": "m"}))
    finally:
        os.environ.clear()
        os.environ.update(before)


def _env_file(data: bytes) -> None:
    from heretic.config.settings import load_settings

    Path(".env").write_bytes(data)
    _settings_used(load_settings({"model": "m"}))


def _command_line(tokens: list[str]) -> None:
    from heretic.cli.main import run

    with suppress(SystemExit):  # --help and --version
        run(tokens)


def _plans(data: bytes) -> None:
    from heretic.pipeline import read_plans

    Path("plan.json").write_bytes(data)
    for plan in read_plans(Path("plan.json")):
        json.dumps(plan.to_dict(), allow_nan=False).encode()
        for name, kernel in plan.kernels:
            assert all(map(math.isfinite, plan.ablation_weights(name, 1)))
            kernel.figures()


def _run_folder(given_input: tuple[str, bytes]) -> None:
    from heretic.cli.main import run
    from heretic.runs.folder import RunFolder

    name, data = given_input
    shutil.copytree(RUN, Path("checkpoints") / RUN.name)
    folder = RunFolder(Path("checkpoints") / RUN.name)
    (folder.path / name).write_bytes(data)
    assert run(["runs"]) == 0  # one damaged folder must not hide the others
    assert run(["runs", "--json"]) == 0
    _each(
        lambda: _settings_of_run(folder),
        folder.read_trials,
        folder.load_directions,
        folder.read_sweep,
        folder.mend,
    )


def _settings_of_run(folder: Any) -> None:
    from heretic.config import Settings
    from heretic.config.schema import run_names, values_as_before

    known = folder.require_manifest()
    said = {name: value for name, value in known.settings.items() if name in run_names()}
    _settings_used(Settings.restore({**values_as_before(), **said}))
    assert known.date is None or known.date.tzinfo is None


class _PreparedError(HereticError):
    """All that comes before loading went well."""


def _reproduction(data: bytes) -> None:
    import torch

    from heretic.events import Silent
    from heretic.export.reproduce import reproduce
    from heretic.search.sampler import sampler_seed

    def prepare(settings: Any, seed: int, *rest: Any) -> Any:
        sampler_seed(seed, 0)
        torch.manual_seed(seed)
        _settings_used(settings)
        raise _PreparedError("prepared")

    Path("reproduce.json").write_bytes(data)
    with suppress(_PreparedError):
        reproduce(Path("reproduce.json"), Path("out"), prepare=prepare, reporter=Silent())


def _prompt_file(given_input: tuple[str, bytes, str, str]) -> None:
    from heretic.config import DatasetSpecification
    from heretic.prompts import load

    ending, data, split, column = given_input
    Path(f"prompts{ending}").write_bytes(data)
    for prompt in load(
        DatasetSpecification(dataset=f"./prompts{ending}", split=split, column=column)
    ):
        assert isinstance(prompt.user, str)


def _replies_file(data: bytes) -> None:
    from heretic.cli.main import run

    Path("replies.jsonl").write_bytes(data)
    run(["classify", "replies.jsonl"])


def _answer(text: str) -> None:
    from heretic.judges import answers

    with suppress(answers.UnreadableAnswerError):  # the judge is asked again
        answers.verdict(text, ["refusal", "compliance"])
    with suppress(answers.UnreadableAnswerError):
        answers.content(text)
    answers.usage(text)
    answers.stored(text, ["refusal"])


def _card(data: bytes) -> None:
    from heretic.export.documents.base_card import base_metadata, carried_over

    Path("model").mkdir()
    Path("model", "README.md").write_bytes(data)
    json.dumps(carried_over(base_metadata("./model"), "./model"), default=str)


def _weights(data: bytes) -> None:
    from heretic.export.safetensors.checkpoint import read_header

    Path("model.safetensors").write_bytes(data)
    read_header(Path("model.safetensors"))


def _gguf(data: bytes) -> None:
    from heretic.config.settings import load_settings

    Path("model.gguf").write_bytes(data)
    load_settings({"model": "./model.gguf"})


@cache
def _tiny() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="heretic-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tiny.folder(folder / "model", num_hidden_layers=1)


def _model(given_input: tuple[str, bytes]) -> Path:
    name, data = given_input
    folder = Path("model").absolute()
    shutil.copytree(_tiny(), folder)
    (folder / name).write_bytes(data)
    return folder


def _inspected(given_input: tuple[str, bytes]) -> None:
    from heretic.cli.main import run

    run(["inspect", str(_model(given_input)), "--json"])


def _loaded(given_input: tuple[str, bytes]) -> None:
    from heretic.config import Settings
    from heretic.model import Model

    model = Model(Settings(model=str(_model(given_input)), dtypes=["float32"], batch_size=2))
    model.get_responses(["Hello", "Bye"], max_new_tokens=2)


# --- what they are given --------------------------------------------------------------------

PLAN = json.loads((RUN / "front.json").read_text(encoding="utf-8"))[0]["plan"]
MANIFEST = json.loads((RUN / "manifest.json").read_text(encoding="utf-8"))
LAYERS = {**PLAN, "kernels": {"attn": {"weights": [[1.0], [], [0.5]]}}, "rank": 1}
WHOLE = {**PLAN, "direction_scope": "global", "direction_index": 1.5}
SCORE = {
    "name": "refusals",
    "value": 0.5,
    "optimization": "minimize",
    "display": "1/2",
    "interval": [0.1, 0.9],
}
SETTINGS = {name: value for name, value in MANIFEST["settings"].items() if name != "model"}
REPRODUCTION = {
    "schema_version": 2,
    "heretic_version": "2.0.0",
    "strategy": "merge",
    "max_shard_size": "5GB",
    "seed": 1,
    "settings": {
        "model": "m",
        "n_startup_trials": 3,
        "max_rank": 1,
        "scorers": MANIFEST["settings"]["scorers"],
    },
    "found": {
        "batch_size": 4,
        "dtype": "float32",
        "response_prefix": "",
        "date": "2026-01-02T03:04:05",
    },
    "trial": 3,
    "plan": PLAN,
    "scores": {"before": [SCORE], "after": [SCORE], "verified": True},
    "directions_sha256": "0" * 64,
    "files": {"model.safetensors": {"sha256": "0" * 64, "size": 3}},
    "versions": {"torch": "2.13.0"},
    "hardware": {"device": "cpu", "cores": 2},
}
FOREIGN = tuple(foreign.document(*keys) for keys in foreign.FILES.values())
PRESET = {"about": "x", "tiny": {"model_types": ["llama"], "why": "y", "batch_size": 1}}
LINES = b'{"text": "a", "n": 1}\n{"text": "b", "n": null}\n'
PROMPTS = {
    ".jsonl": LINES,
    ".json": b'[{"text": "a"}, {"text": null}]',
    ".csv": b'text,n\na,1\n"b\nc",2\n',
    ".tsv": b"text\tn\na\t1\n",
    ".txt": b"a\nb\n",
    ".parquet": b"PAR1",
}
ANSWERS = (
    {"label": "refusal", "reason": "x"},
    {"choices": [{"message": {"content": "refusal"}}], "usage": {}},
)
CARD = b"---\nlicense: mit\nlicense_link: LICENSE\nlanguage: [en]\n---\n# A\n"
HEADER = {
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "__metadata__": {"format": "pt"},
}
GGUF = (
    b"GGUF"
    + bytes(20)
    + (20).to_bytes(8, "little")
    + b"general.architecture"
    + b"\x08\0\0\0"
    + b"\x05"
    + bytes(7)
    + b"llama"
)
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
TEMPLATES = (tiny.CHAT_TEMPLATE, "{% for m in messages %}{{ m.content }}{% endfor %}")


def _tables(*tables: Any) -> st.SearchStrategy[bytes]:
    return fuzzing.files(tables, lambda table: fuzzing.toml(table).encode("utf-8", "replace"))


def _variables() -> st.SearchStrategy[dict[str, str]]:
    names = st.sampled_from(sorted(SETTINGS)).map(str.upper)
    keys = st.sampled_from(["", "__SPLIT", "__X", "__REFUSALS__MARKERS"])
    texts = st.one_of(
        st.sampled_from(fuzzing.TEXTS), fuzzing.values().map(json.dumps), st.text(max_size=6)
    )
    usable = texts.filter(lambda text: "\0" not in text and text.isprintable())
    return st.dictionaries(st.builds("HERETIC_{}{}".format, names, keys), usable, max_size=3)


def _tokens() -> st.SearchStrategy[list[str]]:
    options = sorted("--" + name.replace("_", "-") for name in SETTINGS)
    words = st.sampled_from(
        [*options, *fuzzing.TEXTS, "--scorer.refusals.x", "--good-prompts.split", "--config"]
    )
    values = st.one_of(words, fuzzing.values().map(json.dumps), st.text(max_size=6))
    return st.lists(values, max_size=5).map(lambda tokens: ["inspect", "./missing", *tokens])


def _run_files() -> st.SearchStrategy[tuple[str, bytes]]:
    def changed(name: str) -> st.SearchStrategy[bytes]:
        data = (RUN / name).read_bytes()
        if name.endswith(".json"):
            return fuzzing.files([json.loads(data)])
        if name == "trials.journal":
            return st.one_of(fuzzing.torn(data), _journal(data))
        return fuzzing.torn(data)

    names = (
        "manifest.json",
        "manifest.json",
        "front.json",
        "sweep.json",
        "trials.journal",
        "directions.safetensors",
    )
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), changed(name)))


@st.composite
def _journal(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.splitlines()
    index = draw(st.integers(0, len(lines) - 1))
    with suppress(ValueError):  # a line that a checksum follows
        lines[index] = fuzzing.encoded(draw(fuzzing.changed(json.loads(lines[index]))))
    return b"\n".join(lines) + b"\n"


def _prompt_files() -> st.SearchStrategy[tuple[str, bytes, str, str]]:
    def changed(ending: str) -> st.SearchStrategy[bytes]:
        data = PROMPTS[ending]
        rows = st.lists(fuzzing.values().map(fuzzing.encoded), max_size=3).map(b"\n".join)
        return st.one_of(st.just(data), fuzzing.torn(data), st.binary(max_size=30), rows)

    splits = st.sampled_from(
        [
            "",
            "train",
            "[:1]",
            "train[:50%]",
            "[5:]",
            "x[",
            "train[a:b]",
            "[-1:]",
            "[:99999999999999999999]",
            "train+",
        ]
    )
    columns = st.sampled_from(["text", "text", "n", "", "\0"])
    return st.sampled_from(sorted(PROMPTS)).flatmap(
        lambda ending: st.tuples(st.just(ending), changed(ending), splits, columns)
    )


def _model_files() -> st.SearchStrategy[tuple[str, bytes]]:
    def changed(name: str) -> st.SearchStrategy[bytes]:
        if name == "chat_template.jinja":
            pieces = st.sampled_from(
                [
                    *fuzzing.TEXTS,
                    "{{ x.y }}",
                    "{{ 1/0 }}",
                    "{{ raise_exception('no') }}",
                    "{% if",
                    "{{ ''|z }}",
                    "(" * 300,
                ]
            )
            whole = st.builds(
                lambda a, b: f"{a}{b}".encode("utf-8", "replace"),
                st.sampled_from(TEMPLATES),
                pieces,
            )
            return st.one_of(
                whole, st.sampled_from(TEMPLATES).map(str.encode).flatmap(fuzzing.torn)
            )
        data = (_tiny() / name).read_bytes()
        return (
            fuzzing.torn(data)
            if name.endswith(".safetensors")
            else fuzzing.files([json.loads(data)])
        )

    names = ("config.json", *MODEL_FILES, "chat_template.jinja", "model.safetensors")
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), changed(name)))


def _headers() -> st.SearchStrategy[bytes]:
    def whole(header: bytes, length: int | None) -> bytes:
        size = len(header) if length is None else length
        return size.to_bytes(8, "little") + header + bytes(8)

    lengths = st.one_of(st.none(), st.none(), st.integers(0, 2**64 - 1))
    return st.builds(whole, fuzzing.files([HEADER]), lengths)


def _texts() -> st.SearchStrategy[str]:
    documents = st.sampled_from(ANSWERS).flatmap(fuzzing.changed).map(json.dumps)
    pieces = st.one_of(
        documents,
        st.sampled_from(
            [*fuzzing.TEXTS, "<think>", "</think>", "{" * 500, '{"label": '],
        ),
        st.text(max_size=8),
    )
    return st.lists(pieces, min_size=1, max_size=3).map("".join)


TARGETS: dict[str, Target] = {
    "settings files": Target(lambda: _tables(SETTINGS, {"n_trials": 3}), _settings_file, 0.11),
    "files of heretic-llm": Target(lambda: _tables(*FOREIGN, SETTINGS), _foreign_file, 0.05),
    "presets and behaviours": Target(lambda: _tables(PRESET, SETTINGS), _preset_file, 0.05),
    "environment": Target(_variables, _environment, 0.05),
    ".env": Target(
        lambda: fuzzing.torn(b'HERETIC_N_TRIALS=3\nX="a b"\nHERETIC_MODEL="${X}"\n'),
        _env_file,
        0.05,
    ),
    "command lines": Target(_tokens, _command_line, 0.02),
    "plans": Target(
        lambda: fuzzing.files(
            [
                PLAN,
                LAYERS,
                WHOLE,
                [PLAN],
                {"plan": PLAN},
                [{"trial": 1, "scores": {}, "plan": PLAN}],
            ]
        ),
        _plans,
        0.2,
    ),
    "run folders": Target(_run_files, _run_folder, 0.05),
    "reproduction files": Target(lambda: fuzzing.files([REPRODUCTION]), _reproduction, 0.12),
    "prompt files": Target(_prompt_files, _prompt_file, 0.05),
    "replies": Target(
        lambda: fuzzing.files([{"prompt": "a", "response": "I cannot."}]), _replies_file, 0.02
    ),
    "judges' answers": Target(_texts, _answer, 0.1),
    "cards": Target(
        lambda: st.one_of(
            fuzzing.torn(CARD),
            st.text(max_size=60).map(lambda text: f"---\n{text}\n---\n".encode("utf-8", "replace")),
        ),
        _card,
        0.04,
    ),
    "weight headers": Target(_headers, _weights, 0.05),
    "GGUF files": Target(lambda: fuzzing.torn(GGUF), _gguf, 0.02),
    "inspected models": Target(_model_files, _inspected, 0.01),
    "loaded models": Target(_model_files, _loaded, 0.01),
}


# --- running ---------------------------------------------------------------------------------


def check(read: Callable[[Any], object], given_input: Any) -> bool:
    """Read one input; raise if anything but a `HereticError` of one line comes out.

    Returns:
        Whether the input was accepted.
    """
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
        redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")),
    ):
        os.chdir(folder)
        try:
            read(given_input)
            return True
        except HereticError as error:
            if "\n" in str(error) or not str(error).strip():
                raise AssertionError(f"not one line: {error!s:.500}") from error
            return False
        finally:
            os.chdir(here)


def fuzz(name: str, count: int, first_seed: int = 0, *, on_fault: OnFault | None = None) -> int:
    """Give a target this many inputs.

    Args:
        first_seed: Equal seeds give equal inputs.
        on_fault: Called with what came out and the input, in place of raising it.

    Returns:
        How many of them were accepted.

    Raises:
        AssertionError: Or whatever else came out.
    """
    accepted = 0
    target = TARGETS[name]
    last = os.environ.get("FUZZ_LAST")  # a file that holds the input if the interpreter crashes

    @seed(first_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if on_fault is None else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs())
    def one(given_input: Any) -> None:
        nonlocal accepted
        if last is not None:
            Path(last).write_text(ascii(given_input)[:20_000], encoding="ascii")
        try:
            if on_fault is not None:
                signal.alarm(LONGEST)
            accepted += check(target.read, given_input)
        except Exception as error:
            if on_fault is None:
                raise
            on_fault(error, given_input)

    one()
    return accepted


class _Faults:
    """Different faults, one input for each."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def __call__(self, error: BaseException, given_input: Any) -> None:
        """Print a fault that was not there before."""
        where = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in where if "heretic" in Path(frame.filename).parts] or where
        key = f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}"
        self.found[key] = self.found.get(key, 0) + 1
        if self.found[key] == 1:
            shown = "".join(traceback.format_exception(error)[-6:])
            print(f"== {key}\n{shown[-1500:]}input: {ascii(given_input)[:600]}\n", flush=True)


def _too_long(*_: object) -> None:
    raise AssertionError(f"one input takes more than {LONGEST} s")


def main() -> None:
    """Share the inputs out among the targets; exit with 1 where something else came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS))
    arguments = parser.parse_args()
    if arguments.target is not None:
        faulthandler.enable()
        logging.disable()
        signal.signal(signal.SIGALRM, _too_long)
        faults = _Faults()
        accepted = fuzz(arguments.target, arguments.count, arguments.seed, on_fault=faults)
        print(f"accepted {accepted} of {arguments.count}")
        print(*(f"{count} x {key}" for key, count in faults.found.items()), sep="\n")
        sys.exit(1 if faults.found else 0)
    failed = 0
    for name, target in TARGETS.items():
        count = max(1, round(arguments.count * target.share))
        with tempfile.TemporaryDirectory() as folder:
            last = Path(folder) / "last"
            command = [sys.executable, "-m", "tests.soak.fuzz", "--target", name]
            command += ["--count", str(count), "--seed", str(arguments.seed)]
            started = time.monotonic()
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                env={**os.environ, "FUZZ_LAST": str(last)},
            )
            seconds = time.monotonic() - started
            shown = done.stdout.partition("accepted ")[2].partition("\n")[0] or "?"
            outcome = "as it should be" if done.returncode == 0 else f"FAILED ({done.returncode})"
            print(f"{name}: {shown} accepted, {seconds:.0f} s: {outcome}", flush=True)
            if done.returncode != 0:
                failed += 1
                print(done.stdout[-20_000:], done.stderr[-3000:], flush=True)
                print(
                    f"Last input: {last.read_text(encoding='ascii')[:2000]}"
                    if last.exists()
                    else "",
                    flush=True,
                )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
