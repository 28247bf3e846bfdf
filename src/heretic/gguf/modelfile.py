"""The `Modelfile` by which Ollama makes a model of a GGUF file.

Its form: https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from heretic.gguf.chat_format import ChatFormat

MODELFILE = "Modelfile"

PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Settings of a generation config, and what Ollama calls them."""

FENCE = '"""'


def modelfile(
    file: str,
    name: str,
    chat: ChatFormat | None,
    *,
    stops: Sequence[str],
    generation: Mapping[str, Any],
    system: str | None = None,
) -> str:
    """The text of a Modelfile.

    Args:
        file: Name of the GGUF file, which lies beside it.
        name: What the model may be called.
        chat: How chats are rendered; None leaves that to Ollama.
        stops: Texts of the tokens that end a reply.
        generation: The content of generation_config.json.
        system: A system prompt that every chat begins with.
    """
    lines = [f"# ollama create {name} -f {MODELFILE}", f"FROM ./{file}"]
    if chat is None:
        lines.append(
            "# No TEMPLATE: this model's chat template does more than put text around messages."
        )
    else:
        lines.append(f"TEMPLATE {FENCE}{chat.go_template()}{FENCE}")
    if system and FENCE not in system:
        lines.append(f"SYSTEM {FENCE}{system}{FENCE}")
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops]
    if generation.get("do_sample"):
        lines += [
            f"PARAMETER {called} {generation[own]:g}"
            for own, called in PARAMETERS.items()
            if isinstance(generation.get(own), int | float)
        ]
    return "\n".join(lines) + "\n"
