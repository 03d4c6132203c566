"""Keeps these tests out of a run whose Triton would compile: test_triton.py runs them in a process of its own."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
