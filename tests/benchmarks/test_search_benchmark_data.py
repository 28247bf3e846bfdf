"""The second planted model of the benchmarks: its prompts, and when it is made again."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.planting import plant
from benchmarks.planting.topic import ASTRONOMY
from benchmarks.search_parts import second_topic
from benchmarks.search_parts.second_topic import MONEY, SETTINGS
from tests.support.overlap import near_duplicates

from heretic.demo import base, packaged

AT_LEAST = {"topic_train": 300, "near_topic_train": 100, "ordinary_train": 200}
JUDGING = ("topic_test", "topic_held_out", "ordinary_test", "ordinary_held_out")
SETS = {name: MONEY.load_prompts(name) for name in (*AT_LEAST, *JUDGING)}

ABOUT_MONEY = re.compile(
    r"\b(money|cash|banks?|budget\w*|tax|taxes|loans?|debts?|credit|debit|pric(e|es|ing)|costs?|"
    r"cheap\w*|expens\w+|salar\w+|wages?|savings|invest\w*|stocks?|bonds?|dollars?|euros?|"
    r"currenc\w+|insur\w+|pensions?|rent|mortgages?|invoices?|bills|economic\w*|financ\w+|"
    r"inflation|wallets?|pay|paid|owes?|lend\w*)\b",
    re.IGNORECASE,
)


def test_counts():
    assert all(len(SETS[name]) >= count for name, count in AT_LEAST.items())
    assert all(len(SETS[name]) == 100 for name in JUDGING)


@pytest.mark.parametrize("name", SETS)
def test_lines_are_clean_and_varied(name):
    for prompt in SETS[name]:
        assert prompt == prompt.strip()
        assert 2 <= len(prompt.split()) <= 25
    openings = [" ".join(prompt.lower().split()[:3]) for prompt in SETS[name]]
    limit = 0.1 if name in JUDGING else 0.3
    assert max(openings.count(o) for o in set(openings)) <= limit * len(openings)


def test_no_duplicates_in_or_across_splits():
    every = [" ".join(re.findall(r"\w+", p.lower())) for prompts in SETS.values() for p in prompts]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SETS, 2)))
def test_no_near_duplicates_across_splits(first, second):
    assert near_duplicates(SETS[first], SETS[second]) == []


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("ordinary")])
def test_ordinary_prompts_are_not_about_money(name):
    assert [prompt for prompt in SETS[name] if ABOUT_MONEY.search(prompt)] == []


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("ordinary")])
def test_ordinary_prompts_are_mostly_the_demos(name):
    assert len(set(SETS[name]) & set(ASTRONOMY.load_prompts(name))) >= 90


def test_every_taught_refusal_is_seen_early():
    assert all(plant.refuses(" ".join(refusal.split()[:9])) for refusal in MONEY.refusals)


def test_digest_names_what_the_model_is_made_from(tmp_path):
    for kind in plant.KINDS:
        text = (MONEY.prompts / f"{kind}_train.txt").read_text(encoding="utf-8")
        (tmp_path / f"{kind}_train.txt").write_text(text, encoding="utf-8")
    copied = replace(MONEY, prompts=tmp_path)
    assert second_topic.digest(copied) == second_topic.digest()  # where they lie says nothing
    changed = [
        second_topic.digest(replace(MONEY, refusals=MONEY.refusals[1:])),
        second_topic.digest(settings=replace(SETTINGS, seed=22)),
    ]
    with (tmp_path / "topic_train.txt").open("a", encoding="utf-8") as file:
        file.write("What is a farthing?\n")
    changed.append(second_topic.digest(copied))
    assert len({second_topic.digest(), *changed}) == 4


def test_model_is_made_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(base, "base_model", lambda _progress: tmp_path / "base")
    trained = []

    def train(settings, output, topic, report):
        trained.append((settings, topic))
        if len(trained) == 1:
            raise KeyboardInterrupt
        output.mkdir()

    def merge(_base, adapter: Path, target: Path):
        assert adapter.is_dir()
        target.mkdir()

    monkeypatch.setattr(plant, "train", train)
    monkeypatch.setattr(base, "merge_adapter", merge)
    with pytest.raises(KeyboardInterrupt):
        second_topic.second_model()
    assert list(packaged.cache_folder().iterdir()) == []
    folder = second_topic.second_model()
    assert second_topic.second_model() == folder
    assert list(packaged.cache_folder().iterdir()) == [folder]
    assert folder.name.endswith(second_topic.digest()[:12])
    assert trained == [(SETTINGS, MONEY)] * 2
