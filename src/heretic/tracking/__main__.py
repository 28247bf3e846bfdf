"""The process of a tracker: JSON lines on standard input, one for each message.

The first says the service and how the run begins, the following have figures, the last says why the
search ended. At the end of the input without such a line, the search was killed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from heretic.tracking.services import SERVICES, Beginning


def main() -> None:
    """Hand on what is read, until the input ends."""
    lines = iter(sys.stdin)
    first = json.loads(next(lines))
    service = SERVICES[first.pop("service")]()
    service.begin(Beginning(**first | {"folder": Path(first["folder"])}))
    reason, step = "interrupted", 0
    for line in lines:
        message = json.loads(line)
        if "reason" in message:
            reason = message["reason"]
            break
        step = int(message.get("trial", step))
        service.log(step, message)
    service.end(reason)


if __name__ == "__main__":
    main()
