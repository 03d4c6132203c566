"""Runs the command `headrace` as `python -m headrace.services`."""

import sys

from headrace.services.cli import main

if __name__ == "__main__":
    sys.exit(main())
