"""Chat templates as Ollama takes them: found by rendering, proven by Go's own templates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest

from heretic.gguf.chat_format import ChatFormat, Render, chat_format
from heretic.gguf.modelfile import modelfile

PROGRAM = Path(__file__).parents[1] / "support" / "go_template.go"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAKEN = {
    "chatml": CHATML,
    "with a system prompt of its own": "{% if messages[0]['role'] != 'system' %}<|im_start|>system"
    "\nYou are helpful, {{ '{{' }} and \"good\".<|im_end|>\n{% endif %}" + CHATML,
    "llama 3": "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
    "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma, without system prompts": "<bos>{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no') }}{% endif %}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
    "gemma 3, system prompt within the user's turn": "<bos>{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ first if loop.first else '' }}"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
    "mistral": "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
    "a closed block of reasoning before each new reply": CHATML + "<think>\n\n</think>\n\n",
    "phi": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "<|assistant|>\n",
}
REFUSED = {
    "numbers its turns": "{% for m in messages %}[{{ loop.index }}] {{ m['content'] }}\n"
    "{% endfor %}",
    "changes what is said": "{% for m in messages %}{{ m['content'] | upper }}\n{% endfor %}",
    "leaves out earlier turns": "{{ messages[-1]['content'] }}\n",
    "escapes": "{% for m in messages %}{{ m['content'] | e }}\n{% endfor %}",
    "fails": "{{ raise_exception('never') }}",
}
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is a cat?"}],
    [
        {"role": "user", "content": 'Hi {{ .System }}\n"quoted" `ticks` ü'},
        {"role": "assistant", "content": "A\nB"},
        {"role": "user", "content": "Why?"},
    ],
]
SYSTEM = {"role": "system", "content": 'Be brief.\nSay "yes".'}


def render_by(template: str) -> Render:
    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True)
    compiled = environment.from_string(template)
    return lambda chat: compiled.render(
        messages=list(chat), add_generation_prompt=True, raise_exception=refuse
    )


def found(name: str) -> ChatFormat:
    result = chat_format(render_by(TAKEN[name]))
    assert result is not None
    return result


@pytest.mark.parametrize("name", TAKEN)
def test_text_is_that_of_the_template(name: str) -> None:
    result, render = found(name), render_by(TAKEN[name])
    for chat in CHATS:
        assert result.text(chat) == render(chat)
        if result.system is not None:
            assert result.text([SYSTEM, *chat]) == render([SYSTEM, *chat])


def test_what_takes_no_system_prompt_is_known() -> None:
    without = {name for name in TAKEN if found(name).system is None}
    assert without == {"gemma, without system prompts", "mistral"}


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_do_more_are_refused(name: str) -> None:
    assert chat_format(render_by(REFUSED[name])) is None


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed (.ci/run installs it)")
def test_go_renders_chats_like_the_template(tmp_path: Path) -> None:
    """In Ollama's own language, one and two turns, with and without a system prompt."""
    cases: list[dict[str, Any]] = []
    expected = []
    for name, template in TAKEN.items():
        result, render = found(name), render_by(template)
        heads = [[]] if result.system is None else [[], [SYSTEM]]
        for chat in ([*head, *chat] for head in heads for chat in CHATS):
            cases.append({"Template": result.go_template(), "Messages": chat})
            expected.append(render(chat))
    done = subprocess.run(
        ["go", "run", str(PROGRAM)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path), "GO111MODULE": "off"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_start_that_the_program_writes_is_left_out() -> None:
    result = found("llama 3").without_start("<|begin_of_text|>")
    assert result.opening.startswith("<|start_header_id|>user")
    assert result.system is not None
    assert result.system[0].startswith("<|start_header_id|>system")


class TestModelfile:
    def test_what_it_says(self) -> None:
        text = modelfile(
            "cat-q4_k_m.gguf",
            "cat",
            found("chatml"),
            stops=["<|im_end|>", '"'],
            generation={"do_sample": True, "temperature": 0.7, "top_k": 20, "max_length": 9},
            system="Be brief.",
        )
        assert text.splitlines() == [
            "# ollama create cat -f Modelfile",
            "FROM ./cat-q4_k_m.gguf",
            f'TEMPLATE """{found("chatml").go_template()}"""',
            'SYSTEM """Be brief."""',
            'PARAMETER stop "<|im_end|>"',
            'PARAMETER stop "\\""',
            "PARAMETER temperature 0.7",
            "PARAMETER top_k 20",
        ]

    def test_without_a_format_or_sampling(self) -> None:
        text = modelfile("m.gguf", "m", None, stops=[], generation={"temperature": 0.7})
        assert 'TEMPLATE "' not in text
        assert "No TEMPLATE" in text
        assert "PARAMETER" not in text

    def test_no_text_of_a_template_ends_the_block(self) -> None:
        quotes = ChatFormat('"""', None, '"""', ('""', '"'), "")
        line = modelfile("m.gguf", "m", quotes, stops=[], generation={}).splitlines()[2]
        assert line.count('"""') == 2
