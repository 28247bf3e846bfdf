"""The process of a tracker: JSON lines on standard input, one for each message.

The first says the service and how the run begins, the following have figures, the last says how the
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
    complete, step = False, 0
    for line in lines:
        message = json.loads(line)
        if "complete" in message:
            complete = message["complete"]
            break
        step = int(message.get("trial", step))
        service.log(step, message)
    service.end(complete=complete)


if __name__ == "__main__":
    main()
