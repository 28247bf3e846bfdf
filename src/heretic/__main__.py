"""`python -m heretic` is `heretic`."""

import sys

from heretic.main import main

if __name__ == "__main__":
    sys.exit(main())
