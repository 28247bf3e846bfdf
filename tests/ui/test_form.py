"""What the form for a new search becomes, and what it refuses; what models know of a chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic import prompts
from heretic.errors import HereticError
from heretic.events import Silent
from heretic.ui.places import Places
from heretic.ui.site import Again, Form, Named
from heretic.ui.talk import Talk, Turn
from heretic.ui.uploads import keep
from heretic.worker.asked import settings_of


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "good.txt").write_text("a\n")
    return Places.of([tmp_path])


def test_what_is_empty_is_left_to_other_settings(places: Places):
    assert Form("demo").settings(places) == {}
    assert Form("hub", " org/name ").settings(places) == {"model": "org/name"}


def test_fields_stand_above_the_text(places: Places, tmp_path: Path):
    form = Form(
        "folder",
        str(tmp_path / "model"),
        behavior="jokes",
        n_trials=7,
        time_limit=" 2h ",
        sets=(
            Named("good_prompts", str(tmp_path / "good.txt"), "train[:1]", " prompt "),
            Named("bad_prompts", "org/data"),
            Named("bad_evaluation_prompts", " ", "train"),
        ),
        more="n_trials = 3\nseed = 1",
    )
    assert form.settings(places) == {
        "model": str(places.roots[0] / "model"),
        "behavior": "jokes",
        "n_trials": 7,
        "time_limit": "2h",
        "good_prompts": {
            "dataset": str(places.roots[0] / "good.txt"),
            "split": "train[:1]",
            "column": "prompt",
            "config": "",
            "category_column": "",
        },
        "bad_prompts": {"dataset": "org/data", "column": "text"},
        "seed": 1,
    }


LONG = 450
"""Prompts of a file: more than the rows that are usually read of a set."""

OTHERS = """
[bad_prompts]
dataset = "org/data"
config = "german"
split = "train[:2]"
column = "prompt"
category_column = "kind"
prefix = "Say: "
"""
"""A config.toml that names another set."""


@pytest.mark.parametrize("config", ["", OTHERS])
@pytest.mark.parametrize("name", ["good_prompts", "bad_prompts", "bad_evaluation_prompts"])
def test_of_an_uploaded_file_the_search_reads_all_that_its_card_counts(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, config: str
):
    (tmp_path / "config.toml").write_text(config)
    monkeypatch.chdir(tmp_path)
    kept = keep(tmp_path, "a.txt", "".join(f"Prompt {n}?\n" for n in range(LONG)).encode())
    form = Form("hub", "org/name", sets=(Named(name, str(kept.path)),))
    found = getattr(settings_of(form.settings(places), Silent()), name)
    assert len(prompts.load(found)) == kept.count == LONG


def test_the_column_is_the_one_that_the_page_names(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.toml").write_text(OTHERS)
    monkeypatch.chdir(tmp_path)
    kept = keep(tmp_path, "a.csv", b"prompt,text\nNo.,One?\nNo.,Two?\n")
    assert kept.first == ("One?", "Two?")
    form = Form("hub", "org/name", sets=(Named("bad_prompts", str(kept.path)),))
    found = settings_of(form.settings(places), Silent()).bad_prompts
    # A prefix is no matter of the file.
    assert [one.user for one in prompts.load(found)] == ["Say: One?", "Say: Two?"]


def test_what_the_fields_cannot_say_of_a_file_stands_in_the_text(places: Places, tmp_path: Path):
    more = "[good_prompts]\ncategory_column = 'kind'\nsplit = '[:5]'\ndataset = 'org/data'"
    named = Named("good_prompts", str(tmp_path / "good.txt"), column="prompt")
    assert Form("demo", sets=(named,), more=more).settings(places)["good_prompts"] == {
        "dataset": str(places.roots[0] / "good.txt"),
        "split": "[:5]",
        "column": "prompt",
        "config": "",
        "category_column": "kind",
    }


@pytest.mark.parametrize(
    "form",
    [
        Form("hub", ""),
        Form("hub", "a/b/c"),
        Form("hub", "../up"),
        Form("hub", "-x/y"),
        Form("folder", " "),
        Form("folder", "/etc"),
        Form("demo", more="n_trials ="),
        Form("demo", more="seed = 2026-01-01"),
        Form("hub", "a/b", sets=(Named("good_prompts", "/etc/passwd"),)),
        Form("hub", "a/b", sets=(Named("good_prompts", "../x"),)),
    ],
)
def test_what_is_wrong_is_refused_with_a_remedy(places: Places, form: Form):
    with pytest.raises(HereticError) as caught:
        form.settings(places)
    assert caught.value.remedy


def test_each_model_knows_its_own_replies():
    talk = Talk([Turn("one", 1.0, "A", "B", done=True), Turn("two", 1.0)])
    original = [(one.role, one.content) for one in talk.messages(edited=False)]
    edited = [(one.role, one.content) for one in talk.messages(edited=True)]
    assert original == [("user", "one"), ("assistant", "A"), ("user", "two")]
    assert edited == [("user", "one"), ("assistant", "B"), ("user", "two")]


def test_a_message_without_a_reply_is_not_sent_again():
    talk = Talk([Turn("one", 1.0, "", "", done=True), Turn("two", 1.0)])
    assert [one.content for one in talk.messages(edited=True)] == ["two"]


def test_the_system_prompt_stands_first_however_much_was_said():
    talk = Talk([Turn(str(n), 1.0, "A", "B", done=True) for n in range(50)])
    first, second, *_ = talk.messages(edited=True, system="Be brief.")
    assert (first.role, first.content, second.role) == ("system", "Be brief.", "user")


def test_a_number_of_trials_is_named_only_if_the_user_has_changed_it():
    """A named one is reached whether the front grows or not."""
    assert Again(n_trials=40, target=40).named is None
    assert Again(n_trials=40, target=40).settings() == {"n_trials": 40}
    assert Again(n_trials=60, target=40).named == 60
    assert Again().named is None
    assert Again().settings() == {}


def test_a_run_is_opened_again_with_what_its_folder_must_not_decide():
    more = 'trust_remote_code = true\n[scorer.judge]\nendpoint = "http://127.0.0.1:1"'
    assert Again(target=40, more=more).settings() == {
        "n_trials": 40,
        "trust_remote_code": True,
        "scorer": {"judge": {"endpoint": "http://127.0.0.1:1"}},
    }
    with pytest.raises(HereticError, match="no TOML"):
        Again(more="n_trials =").settings()
