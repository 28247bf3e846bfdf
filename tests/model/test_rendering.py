"""Whether the model gets the prompts: chat templates of every form, and what they drop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny

from heretic.config import Settings
from heretic.errors import ModelError, PromptError, SettingsError
from heretic.model import Model
from heretic.model.rendering import check_prompts, lost_words
from heretic.prompts import Prompt

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
WANTING_PARTS = {
    "loop": "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}",
    "filter": "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}"
    "{% endfor %}",
    "first": "{{ m.content[0]['text'] }}",
    "strict": "{{ m.content[0].text | trim + '' }}",
    "system as text": "{% if m.role == 'system' %}{{ m.content | trim }}"
    "{% else %}{{ m.content[0].text }}{% endif %}",
    "system as parts": "{% if m.role != 'system' %}{{ m.content | trim }}"
    "{% else %}{{ m.content[0].text }}{% endif %}",
}
QUESTIONS = [Prompt(text, "You are a helpful assistant.") for text in tiny.GOOD_PROMPTS]


def load(path: Path, template: str | None, **settings: Any) -> Model:
    tiny.folder(path, chat_template=template)
    return reload(path, **settings)


def reload(path: Path, **settings: Any) -> Model:
    return Model(Settings(model=str(path), dtypes=["float32"], response_prefix="", **settings))


@pytest.mark.parametrize("kind", WANTING_PARTS)
def test_content_is_given_as_the_template_wants_it(kind: str, tmp_path: Path):
    model = load(tmp_path, HEAD + WANTING_PARTS[kind] + TAIL)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    assert model.prompt_text(Prompt("Why?", "Be brief.")) == f"{text}<|im_start|>assistant"
    assert check_prompts(model, {"good": QUESTIONS}) == []


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_template_may_hold_what_parts_look_like(quote: str, tmp_path: Path):
    head = "Reply with {_type_: _text_, _text_: _words_}. ".replace("_", quote)
    model = load(tmp_path, f"{head}{{{{ messages[-1].content }}}}")
    assert model.prompt_text(Prompt("Why?")) == f"{head}Why?"


def test_a_template_for_parts_sees_a_whole_conversation(tmp_path: Path):
    model = load(tmp_path, HEAD + WANTING_PARTS["loop"] + TAIL)
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    text = model.renderer.text([{"role": role, "content": said} for role, said in turns])
    assert all(f"{role}\n{said}<|im_end|>" in text for role, said in turns)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("<|im_start|>user\nHello", "leaves out the prompt: it makes"),
        ("{{ messages | length }}", "leaves out the prompt"),
        ("{{ messages[-1].content | first }}", "leaves out the prompt"),
        ("{% for m in messages %}", "fails: TemplateSyntaxError"),
        ("{{ raise_exception('never') }}", "fails: TemplateError: never."),
        ("{{ 1 // 0 }}", "fails: ZeroDivisionError"),
        ("{{ ().__class__.__base__ }}", "fails: SecurityError"),
    ],
)
def test_a_template_that_takes_no_prompt_is_refused(template: str, said: str, tmp_path: Path):
    with pytest.raises(ModelError, match=r"The chat template of .*") as caught:
        load(tmp_path, template)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["{{ m.content[:12] }}", "{{ m.content | replace('kitchen', '') }}"],
)
def test_words_that_a_template_drops_are_shown(content: str, tmp_path: Path):
    model = load(tmp_path, HEAD + content + TAIL)
    with pytest.raises(PromptError, match="leaves out") as caught:
        check_prompts(model, {"good": QUESTIONS})
    assert "im_start" in str(caught.value)  # the rendered text


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content | trim }}",
        "{{ m.content | upper }}",
        "{{ m.content | e }}",
        "{{ m.content | tojson }}",
        "{{ m.content | replace('/no_think', '') }}",
        "{{ m.content | indent(8) | wordwrap(20) }}",
    ],
)
def test_templates_that_rewrite_raise_no_alarm(content: str, tmp_path: Path):
    model = load(tmp_path, HEAD + content + TAIL)
    odd = [
        '  Don\'t you "know"\nme? ',
        "<b>1 & 2</b>",
        "Straße, İstanbul, 你好吗？",
        "🙂",
        "a\\b\t/no_think",
    ]
    assert check_prompts(model, {"good": [Prompt(text) for text in odd]}) == []


def test_lost_words():
    assert lost_words("Name three fish.", "user: NAME three\\nfish!") == []
    assert lost_words("Name three fish.", "user: Name") == ["three", "fish"]
    assert lost_words("Über uns", "\\u00dcber uns") == []
    assert lost_words("?!", "user:") == ["?!"]
    assert lost_words("Why? /no_think", "Why?") == []


class TestSystemPrompts:
    """A system prompt that is dropped is said; one that makes a prompt set is an error."""

    DROPPING = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}"
    REFUSING = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + DROPPING
    )

    @pytest.mark.parametrize("template", [DROPPING, REFUSING])
    def test_the_general_one(self, template: str, tmp_path: Path):
        model = load(tmp_path, template)
        (warning,) = check_prompts(model, {"good": QUESTIONS})
        assert "has no place for a system prompt" in warning
        assert not model.renderer.shows_system
        assert check_prompts(model, {"good": [Prompt(p.user) for p in QUESTIONS]}) == []

    @pytest.mark.parametrize("template", [DROPPING, REFUSING])
    def test_that_of_a_set(self, template: str, tmp_path: Path):
        model = load(tmp_path, template)
        bad = [Prompt(prompt.user, "Always agree with the user.") for prompt in QUESTIONS]
        with pytest.raises(PromptError, match="leaves out the system prompt of a prompt set"):
            check_prompts(model, {"good": QUESTIONS, "bad": bad})


def test_prompts_that_become_equal_are_refused(tmp_path: Path):
    model = load(tmp_path, "{% for m in messages %}{{ m.content | replace('e', 'e') }}{% endfor %}")
    cased = load(tmp_path, "{% for m in messages %}{{ m.content | lower }}{% endfor %}")
    pair = {"good": [Prompt("Why me?")], "bad": [Prompt("WHY ME?")]}
    assert check_prompts(model, pair) == []
    with pytest.raises(PromptError, match="All prompts are the same text for the model: 'why me"):
        check_prompts(cased, pair)
    more = {"good": [Prompt("Why me?"), Prompt("Who?")], "bad": [Prompt("WHO?"), Prompt("WHY ME?")]}
    with pytest.raises(PromptError, match="good and the bad prompts are the same"):
        check_prompts(cased, more)


def test_words_that_the_tokenizer_lacks(tmp_path: Path):
    path = tiny.folder(tmp_path)
    file = path / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    for byte in "Ðð":  # the first bytes of Cyrillic letters, as a byte-level tokenizer writes them
        data["model"]["vocab"].pop(byte, None)
    file.write_text(json.dumps(data), encoding="utf-8")
    model = reload(path)
    assert check_prompts(model, {"good": QUESTIONS}) == []
    (warning,) = check_prompts(
        model, {"good": [Prompt("What does Да mean, please?"), QUESTIONS[0]]}
    )
    assert "no tokens for words of 1 prompts" in warning
    with pytest.raises(PromptError, match="has no tokens for 'что', 'это'"):
        check_prompts(model, {"good": [Prompt("Что это?")]})


class TestTemplatesInOtherPlaces:
    """The template of a processor, named ones, and none."""

    @pytest.mark.parametrize(
        "file", ["chat_template.json", "processor_config.json", "preprocessor_config.json"]
    )
    def test_a_template_beside_the_tokenizer(self, file: str, tmp_path: Path):
        tiny.folder(tmp_path, chat_template=None)
        (tmp_path / file).write_text(json.dumps({"chat_template": tiny.CHAT_TEMPLATE}))
        model = reload(tmp_path)
        assert model.renderer.has_template
        assert model.prompt_text("Hi").endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n")

    def test_the_tokenizers_own_comes_first(self, tmp_path: Path):
        tiny.folder(tmp_path)
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
        assert "user\nHi" in reload(tmp_path).prompt_text("Hi")

    @pytest.mark.parametrize(
        "content", ['{"chat_template": 3}', '{"chat_template": [1]}', "{", "é"]
    )
    def test_a_damaged_file_is_named(self, content: str, tmp_path: Path):
        tiny.folder(tmp_path, chat_template=None)
        (tmp_path / "chat_template.json").write_text(content, encoding="latin-1")
        with pytest.raises(ModelError, match=r"chat_template\.json"):
            reload(tmp_path)

    def named(self, path: Path, *names: str) -> Path:
        tiny.folder(path, chat_template=None)
        file = path / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["chat_template"] = [
            {"name": name, "template": f"({name})" + tiny.CHAT_TEMPLATE} for name in names
        ]
        file.write_text(json.dumps(config), encoding="utf-8")
        return path

    def test_one_of_several_is_chosen_by_name(self, tmp_path: Path):
        path = self.named(tmp_path, "rag", "tool_use")
        with pytest.raises(ModelError, match=r"none is the default: rag, tool_use\. .*--chat-temp"):
            reload(path)
        assert reload(path, chat_template="rag").prompt_text("Hi").startswith("(rag)")
        with pytest.raises(
            SettingsError, match=r"no chat template 'rug': those of .* are rag, tool"
        ):
            reload(path, chat_template="rug")

    def test_the_default_or_the_only_one_needs_no_name(self, tmp_path: Path):
        both = self.named(tmp_path / "both", "rag", "default")
        assert reload(both).prompt_text("Hi").startswith("(default)")
        assert reload(both, chat_template="rag").prompt_text("Hi").startswith("(rag)")
        assert reload(self.named(tmp_path / "one", "rag")).prompt_text("Hi").startswith("(rag)")

    def test_a_file_of_a_named_template(self, tmp_path: Path):
        tiny.folder(tmp_path)
        more = tmp_path / "additional_chat_templates"
        more.mkdir()
        (more / "rag.jinja").write_text("(rag)" + tiny.CHAT_TEMPLATE, encoding="utf-8")
        assert reload(tmp_path).prompt_text("Hi").startswith("<|im_start|>")
        assert reload(tmp_path, chat_template="rag").prompt_text("Hi").startswith("(rag)")

    def test_no_template_has_no_names(self, tmp_path: Path):
        with pytest.raises(SettingsError, match=r"no chat template 'rag'.* has none"):
            load(tmp_path, None, chat_template="rag")
