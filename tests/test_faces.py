"""What programs rely on: the lines of README, docs/library.md and docs/scorers.md, run as written.

The documents name `org/name-or-folder` and the default data sets. Here these are folders of those
names in the working directory, so nothing in a block has to be replaced but a number of trials.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import BatchEncoding

import heretic.main
from heretic import utils
from heretic.config import DatasetSpecification, Settings
from heretic.config.tables import SCORERS
from heretic.evaluator import Evaluator
from heretic.model import AbliterationParameters, Model
from heretic.prompts import Prompt
from heretic.records import Kernel, Trial
from heretic.scorers import Needs, Outputs, Scorer, load_scorers
from heretic.system.display import safe
from tests.support import tiny
from tests.test_docs import DOCS, ROOT, code

MODEL = "org/name-or-folder"
LAYERS = 12
"""So many that kernels of the documents, written for more layers, reach the last of them."""

LAST = LAYERS - 1
VOCABULARY = tiny.SIZES["vocab_size"]
PROMPTS = {
    "mlabonne/harmless_alpaca": tiny.GOOD_PROMPTS,
    "mlabonne/harmful_behaviors": tiny.BAD_PROMPTS,
}
CONFIG = """
seed = 1
dtypes = ["float32"]
search = "tpe"
n_startup_trials = 2
max_response_length = 4
response_prefix = ""
refusal_markers = ["`", "%", "a", "e"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which the names of the documents lead to tiny things."""
    path = tmp_path_factory.mktemp("place")
    tiny.folder(path / MODEL, num_hidden_layers=LAYERS, initializer_range=0.2)
    for name, texts in PROMPTS.items():
        rows = {"train": texts[:8], "test": texts[8:]}
        sets = {split: Dataset.from_dict({"text": lines}) for split, lines in rows.items()}
        DatasetDict(sets).save_to_disk(path / name)
    (path / "good.txt").write_text("\n".join(tiny.GOOD_PROMPTS), encoding="utf-8")
    (path / "config.toml").write_text(CONFIG, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "argv", ["program", "--n-trials", "none of heretic's business"])
        yield path


def executed(blocks: list[str], page: str) -> dict[str, Any]:
    """The names that blocks leave behind, run one after the other."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def library(place: Path) -> SimpleNamespace:
    """What docs/library.md leaves behind."""
    blocks = code("library.md", "python")
    assert sum("n_trials=100" in block for block in blocks) == 1
    return SimpleNamespace(
        **executed(
            [block.replace("n_trials=100", "n_trials=2") for block in blocks], "docs/library.md"
        )
    )


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return Model(Settings(model=MODEL))


class TestDocuments:
    def test_library(self, library: SimpleNamespace, place: Path) -> None:
        assert library.good.shape == (8, LAYERS + 1, 32)
        assert library.directions.shape == (LAYERS + 1, 32)
        assert len(library.plans) == len(library.scores) > 1
        assert [score.name for score in library.scores[0]] == ["refusals", "kl_divergence"]
        assert len(library.session.study.trials) == 2
        assert library.front[0] in library.session.study.trials
        assert library.model.is_original
        saved = load_file(place / "edited" / "model.safetensors")
        original = load_file(place / MODEL / "model.safetensors")
        assert saved.keys() == original.keys()
        assert len(library.rows) == LAYERS
        assert (place / "front.png").is_file()
        assert (place / "plots" / "layers.gif").is_file()

    def test_readme(self, place: Path) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert '"edited"' in block
        named = block.replace('model="..."', f'model="{MODEL}"').replace('"edited"', '"by_readme"')
        names = executed([named], "README.md")
        (scaled, ratio), kl, refusals = names["score"], names["kl"], names["refusals"]
        assert scaled == kl > 0
        base = names["Evaluator"](names["settings"], names["model"]).base_refusals
        assert ratio == (refusals / base if base else refusals)
        saved = load_file(place / "by_readme" / "model.safetensors")
        original = load_file(place / MODEL / "model.safetensors")
        assert {name for name in original if not saved[name].equal(original[name])}
        assert (place / "by_readme" / "tokenizer.json").is_file()

    def test_every_name_that_is_imported_exists(self) -> None:
        pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
        lines = "\n".join(page.read_text(encoding="utf-8") for page in pages)
        imports = re.findall(r"^from (heretic[\w.]*) import ([\w, ]+)$", lines, re.MULTILINE)
        found = {(module, name) for module, names in imports for name in names.split(", ")}
        assert {("heretic", "pipeline"), ("heretic.scorers", "Needs")} <= found
        assert [pair for pair in found if not is_there(*pair)] == []


def is_there(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name) or bool(import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


class TestModel:
    """Each method that docs/library.md lists, called as it says."""

    def test_the_page_lists_methods_that_exist(self) -> None:
        page = (DOCS / "library.md").read_text(encoding="utf-8")
        table = page.partition("| method | gives |")[2].partition("\n\n")[0]
        cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
        names = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
        assert len(names) >= 14
        assert [name for name in names if not callable(getattr(Model, name, None))] == []

    def test_readings(self, model: Model) -> None:
        texts = tiny.GOOD_PROMPTS[:3]
        residuals = model.get_residuals(texts)
        assert residuals.shape == (3, LAYERS + 1, 32)
        torch.testing.assert_close(model.get_residuals_batched(texts), residuals)
        logprobs = model.get_logprobs(texts)
        assert logprobs.shape == (3, VOCABULARY)
        torch.testing.assert_close(logprobs.exp().sum(dim=-1), torch.ones(3))
        torch.testing.assert_close(model.get_logprobs_batched(texts), logprobs)

    def test_replies(self, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
        texts = tiny.GOOD_PROMPTS[:3]
        replies = model.get_responses(texts)
        assert [type(reply) for reply in replies] == [str] * 3
        assert model.get_responses_batched(texts) == replies
        inputs, output = model.generate(texts, max_new_tokens=2)
        assert isinstance(inputs, BatchEncoding)
        assert output.shape == (3, inputs["input_ids"].shape[1] + 2)
        chat = model.get_chat("Why?")
        assert chat[-1] == {"role": "user", "content": "Why?"}
        assert capsys.readouterr().out.count("\n") == 0
        said = model.stream_chat_response(chat)
        assert capsys.readouterr().out == f"{safe(said)}\n"

    def test_what_can_be_edited(self, model: Model) -> None:
        assert len(model.get_layers()) == LAYERS
        assert model.get_abliterable_components() == ["attn.o_proj", "mlp.down_proj"]
        matrices = model.get_layer_matrices(3)
        assert {name: [tuple(m.shape) for m in found] for name, found in matrices.items()} == {
            "attn.o_proj": [(32, 32)],
            "mlp.down_proj": [(32, 48)],
        }

    @pytest.mark.parametrize(("index", "scope"), [(None, None), (17.5, None), (None, "mean")])
    def test_edits(
        self, model: Model, library: SimpleNamespace, index: float | None, scope: Any
    ) -> None:
        kernel = AbliterationParameters(
            max_weight=1.0, max_weight_position=20.0, min_weight=0.0, min_weight_distance=12.0
        )
        matrix = model.get_layer_matrices(LAST)["attn.o_proj"][0]
        before = matrix.clone()
        model.abliterate(
            library.directions,
            direction_index=index,
            parameters={"attn": kernel, "mlp": kernel},
            direction_scope=scope,
        )
        assert not torch.equal(model.get_layer_matrices(LAST)["attn.o_proj"][0], before)
        model.reload_model()
        assert torch.equal(model.get_layer_matrices(LAST)["attn.o_proj"][0], before)

    def test_arguments_are_in_the_order_that_is_promised(self) -> None:
        order = list(inspect.signature(Model.abliterate).parameters)
        assert order[1:4] == ["refusal_directions", "direction_index", "parameters"]
        assert Kernel is AbliterationParameters
        assert Kernel(1.1, 20.0, 0.2, 12.0) == AbliterationParameters(
            max_weight=1.1, max_weight_position=20.0, min_weight=0.2, min_weight_distance=12.0
        )

    def test_plans_and_the_evaluator(self, model: Model, library: SimpleNamespace) -> None:
        """Weights that are changed give what the same plan gives beside them."""
        evaluator = Evaluator(model.settings, model, library.directions)
        assert isinstance(evaluator.is_refusal("I'm sorry"), bool)
        original = evaluator.count_refusals()
        beside = evaluator.evaluate([library.plan])[0]
        model.apply(library.plan, library.directions)
        late = Evaluator(model.settings, model)  # its baseline is the unedited model all the same
        (scaled, ratio), kl, refusals = late.get_score()
        assert kl == pytest.approx(beside[1].value, rel=1e-3)
        assert kl == scaled > 0
        assert ratio == (refusals / original if original else refusals)
        model.restore()
        assert late.get_score() == ((0.0, 1.0 if original else 0.0), 0.0, original)


class TestUtils:
    def test_prompts_are_texts(self, place: Path) -> None:
        specification = DatasetSpecification(dataset="good.txt", split="train[:100]", prefix="> ")
        assert utils.load_prompts(specification) == [f"> {text}" for text in tiny.GOOD_PROMPTS]

    def test_small_ones(self) -> None:
        assert utils.batchify(range(5), 2) == [[0, 1], [2, 3], [4]]
        assert [utils.format_duration(seconds) for seconds in (5, 65)] == ["5s", "1m 5s"]
        utils.empty_cache()

    def test_of_a_trial(self, library: SimpleNamespace) -> None:
        trial: Trial = library.front[0]
        parameters = utils.get_trial_parameters(trial)
        assert parameters["direction_scope"] == trial.plan.direction_scope
        assert all(isinstance(value, str) for value in parameters.values())
        intro = utils.get_readme_intro(MODEL, trial, library.evaluator)
        assert "name-or-folder" in intro
        assert trial.scores[0].display in intro

    def test_entry_points(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert heretic.main.run(["--version"]) == 0
        assert heretic.main.main(["--version"]) == 0
        assert capsys.readouterr().out.count(f"heretic {heretic.__version__}\n") == 2


PLUGIN = '''
"""All that docs/scorers.md says a scorer may have."""

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from heretic.config import DatasetSpecification
from heretic.scorers import Needs, Outputs, Scorer


def note(asked: str) -> None:
    with Path("asked.txt").open("a") as file:
        print(asked, file=file)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    own: DatasetSpecification


class Everything(Scorer):
    Options: ClassVar[type[BaseModel]] = Options
    needs = Needs(
        logits=frozenset({"good"}),
        responses=frozenset({"bad", "everything own"}),
        continuations={"good": 2},
        texts={"everything own": 16},
    )

    def sets(self) -> dict[str, DatasetSpecification]:
        return {"everything own": self.options.own}

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        note("measure")
        figures = [
            float(len(outputs.prompts["everything own"])),
            float(outputs.logits["good"].shape[1]),
            float(len(outputs.responses["everything own"])),
            float(len(outputs.continuations)),
            float(len(outputs.readings)),
            float(outputs.prompts["bad"][0].user != "" and not outputs.prompts["bad"][0].system),
        ]
        return sum(figures), " ".join(map(str, figures))

    def shows(self, reply: str) -> bool:
        note("shows")
        return len(reply) % 2 == 0

    def decided(self, response: str) -> bool:
        note("decided")
        return False

    def best_possible(self, replies: dict[str, list[str | None]]) -> tuple[float, str]:
        note("best_possible")
        return 0.0, "at least 0"
'''
ASKED = {"measure", "shows", "decided", "best_possible"}
EVERYTHING = """
system_prompt = ""
[[scorers]]
plugin = "everything.py:Everything"
name = "everything"
[[scorers]]
plugin = "length.py:LongReplies"
name = "length"
[scorer.length]
limit = 1
[scorer.everything.own]
dataset = "good.txt"
split = "train[:3]"
"""


class TestScorers:
    def test_one_that_uses_all_that_is_offered(self, place: Path) -> None:
        """It is made from a file, as the page's own example beside it, and works in a search."""
        (place / "everything.py").write_text(PLUGIN, encoding="utf-8")
        (place / "length.py").write_text(code("scorers.md", "python")[0], encoding="utf-8")
        (place / "everything.toml").write_text(CONFIG + EVERYTHING, encoding="utf-8")
        arguments = ["--search", "auto", "--n-trials", "2", "--study-checkpoint-dir", "scored"]
        assert heretic.main.run([MODEL, "--config", "everything.toml", *arguments]) == 0
        assert set((place / "asked.txt").read_text(encoding="utf-8").split()) == ASKED
        front = next((place / "scored").glob("*/front.json")).read_text(encoding="utf-8")
        assert '"everything"' in front
        assert '"length"' in front

    @pytest.mark.parametrize(
        ("kind", "fields"),
        [
            (Outputs, ["prompts", "logits", "responses", "continuations", "readings"]),
            (Needs, ["logits", "responses", "continuations", "texts"]),
            (Prompt, ["user", "system"]),
        ],
    )
    def test_fields(self, kind: Callable[..., Any], fields: list[str]) -> None:
        assert set(fields) <= set(inspect.signature(kind).parameters)


SAVED = {
    "refusal": "heretic.scorers.refusal:RefusalDetector",
    "over_refusal": "heretic.scorers.refusal:OverRefusal",
    "keyword": "heretic.scorers.keyword:KeywordRefusals",
    "kl_divergence": "heretic.scorers.kl_divergence:KLDivergence",
    "continuation_kl": "heretic.scorers.fidelity:ContinuationKL",
    "greedy_agreement": "heretic.scorers.fidelity:GreedyAgreement",
    "perplexity": "heretic.scorers.fidelity:Perplexity",
    "capability": "heretic.scorers.capability:Capability",
    "reply_similarity": "heretic.scorers.fidelity:ReplySimilarity",
    "reply_length": "heretic.scorers.fidelity:ReplyLength",
    "stock_phrases": "heretic.scorers.style:StockPhrases",
    "jokes": "heretic.scorers.style:Jokes",
    "agreement": "heretic.scorers.style:Agreement",
    "words": "heretic.scorers.style:ReplyWords",
    "recognition": "heretic.scorers.recognition:Recognition",
    "llm_judge": "heretic.scorers.judge:LLMJudge",
    "classifier_judge": "heretic.scorers.judge:ClassifierJudge",
}
"""Scorers by the names that saved runs and reproduction files hold: none may go."""

NEEDED_OPTIONS: dict[str, dict[str, Any]] = {
    "over_refusal": {"prompts": {"dataset": "good.txt"}},
    "perplexity": {"texts": {"dataset": "good.txt"}},
    "recognition": {"question": "Is it about the sky? {prompt}"},
    "llm_judge": {"endpoint": "http://localhost:8000/v1", "model": "judge"},
    "classifier_judge": {"model": "judge", "counts": ["refusal"]},
}


class TestSavedNames:
    @pytest.mark.parametrize("short", SAVED)
    def test_a_scorer_of_a_saved_run_is_found(self, short: str) -> None:
        module, _, name = SAVED[short].partition(":")
        assert issubclass(getattr(import_module(module), name), Scorer)
        for plugin in (short, SAVED[short]):
            table = {"plugin": plugin, "name": "it"}
            options = {"it": NEEDED_OPTIONS.get(short, {})}
            settings = Settings(model="m", scorers=[table], scorer=options)
            assert settings.scorers[0].plugin == SAVED[short]
            (scorer,) = load_scorers(settings)
            assert type(scorer).__name__ == name

    def test_no_scorer_is_missing_here(self) -> None:
        assert SCORERS.keys() <= SAVED.keys()
