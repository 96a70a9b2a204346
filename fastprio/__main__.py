"""``python -m fastprio`` is the command ``fastprio``."""

import sys

from fastprio.cli import main

if __name__ == "__main__":
    sys.exit(main())
