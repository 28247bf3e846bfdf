"""Coverage-guided fuzzing of the pure parsers: nothing but their own errors comes out.

    pip install atheris
    python -m tests.soak.parsers -runs=100000

`make soak` leaves it out, since atheris is not there for every Python and system. What it finds
belongs into `tests/soak/fuzz.py` or a test of the parser.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["heretic"]):
    from heretic.errors import HereticError
    from heretic.judges import answers
    from heretic.records import Plan
    from heretic.refusals import classify
    from heretic.system.documents import parse_json, parse_toml


def one(data: bytes) -> None:
    """Hand bytes to every parser."""
    text = data.decode("utf-8", "replace")
    for strict in (True, False):
        with suppress(ValueError, HereticError):
            Plan.from_dict(parse_json(data, strict=strict))
    with suppress(ValueError):
        parse_toml(text)
    with suppress(answers.UnreadableAnswerError):
        answers.verdict(text, ["refusal", "compliance"])
    with suppress(answers.UnreadableAnswerError):
        answers.content(text)
    answers.usage(text)
    answers.stored(text, ["refusal"])
    classify(text[:2000], text)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
