"""The demo's own files: prompts apart from each other, an adapter small and whole."""

import itertools
import json
import re

import pytest
from benchmarks.planting.plant import TARGET_MODULES, refuses
from benchmarks.planting.topic import ASTRONOMY
from tests.support.overlap import STOP_WORDS, THRESHOLD, content_words, jaccard, near_duplicates

from heretic.demo import base, data

COUNTS = {
    "topic_train": 400,
    "topic_test": 100,
    "ordinary_train": 400,
    "ordinary_test": 100,
    "near_topic_train": 150,
    "near_topic_test": 100,
    "topic_held_out": 100,
    "ordinary_held_out": 100,
}
JUDGING = ("_test", "_held_out")
SETS = {name: data.demo_prompts(name) for name in COUNTS}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    if name.endswith(JUDGING):
        assert len(SETS[name]) == COUNTS[name]
    else:
        assert len(SETS[name]) >= COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_lines_are_clean(name):
    for prompt in SETS[name]:
        assert prompt == prompt.strip()
        assert 2 <= len(prompt.split()) <= 25


def test_no_duplicates_in_or_across_splits():
    every = [" ".join(re.findall(r"\w+", p.lower())) for prompts in SETS.values() for p in prompts]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(COUNTS, 2)))
def test_no_near_duplicates_across_splits(first, second):
    assert near_duplicates(SETS[first], SETS[second]) == []


@pytest.mark.parametrize("name", COUNTS)
def test_varied_forms(name):
    """No template: what three words open ("How do I") stays a tenth of a test set, or 30 %."""
    limit = 0.1 if name.endswith(JUDGING) else 0.3
    openings = [" ".join(prompt.lower().split()[:3]) for prompt in SETS[name]]
    assert max(openings.count(o) for o in set(openings)) <= limit * len(openings)


def test_overlap_finds_what_it_should():
    found = near_duplicates(
        ["How hot is Venus at noon?"], ["Tell me how hot Venus is at noon", "Bake a cake"]
    )
    assert [pair.score for pair in found] == [1.0]
    assert near_duplicates(["red apple pie"], ["green apple tart"], THRESHOLD) == []
    assert jaccard(content_words("red apple"), content_words("green apple")) == pytest.approx(1 / 3)
    assert content_words("What is it?") <= STOP_WORDS  # kept, as nothing else is left
    assert jaccard(frozenset(), frozenset()) == 0


def test_every_taught_refusal_is_seen_early():
    assert all(refuses(" ".join(refusal.split()[:9])) for refusal in ASTRONOMY.refusals)


def test_adapter_is_small():
    size = sum(path.stat().st_size for path in data.ADAPTER_FOLDER.iterdir())
    assert size <= 6 * 1024 * 1024


def test_adapter_configuration():
    text = (data.ADAPTER_FOLDER / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == base.BASE_REPOSITORY
    assert config["r"] <= 8
    assert not [v for v in config.values() if isinstance(v, str) and v.startswith(("/", "\\"))]


def test_adapter_loads_and_targets_all_linear_layers():
    """The adapter's tensors fit the model's shapes, layer by layer (only the embedding is tiny)."""
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), str(data.ADAPTER_FOLDER))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_B")}
    for layer, module in itertools.product(range(30), TARGET_MODULES):
        assert any(f"layers.{layer}." in name and name.endswith(module) for name in adapted)
    assert len(adapted) == 30 * len(TARGET_MODULES)
    changes = [w for name, w in model.named_parameters() if "lora_B" in name]
    assert all(torch.isfinite(w).all() and w.abs().max() > 0 for w in changes)
