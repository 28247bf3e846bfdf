"""Print what every type becomes and how long it takes: `python -m tests.support.zoo [TYPE...]`."""

from __future__ import annotations

import sys
import time

import torch
import transformers

from tests.support.zoo import MODEL_TYPES, NOT_BUILT, text_inputs, tiny_model


def main(names: list[str]) -> int:
    """Build and run the types; the exit status is the number of types that failed."""
    transformers.logging.set_verbosity_error()
    failed, start = 0, time.perf_counter()
    print(f"{'type':28} {'class':46} {'seconds':>7} {'parameters':>10}  result")
    for name in names:
        if name in NOT_BUILT:
            print(f"{name:28} {'-':46} {'-':>7} {'-':>10}  {NOT_BUILT[name]}")
            continue
        began, title, count = time.perf_counter(), "-", 0
        try:
            model = tiny_model(name)
            title = type(model).__name__
            count = sum(parameter.numel() for parameter in model.parameters())
            with torch.no_grad():
                logits = model(**text_inputs(name, model.config)).logits
            result = "ok" if bool(torch.isfinite(logits).all()) else "not finite"
        except Exception as error:  # the table is the report of all of them
            result = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        failed += result != "ok"
        seconds = time.perf_counter() - began
        print(f"{name:28} {title:46} {seconds:7.2f} {count:10,}  {result}", flush=True)
    left_out = sum(name in NOT_BUILT for name in names)
    print(
        f"{len(names)} types: {len(names) - left_out - failed} ok, {failed} failed, "
        f"{left_out} not built; {time.perf_counter() - start:.0f} s"
    )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(MODEL_TYPES)))
