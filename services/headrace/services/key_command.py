"""`headrace key`: makes a key, and the entry with its hash for the access file."""

import argparse
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from headrace.services.access_list import NAME_PATTERN, hash_key
from headrace.services.caller import Role

KEY_BYTES = 32
"""256 bits: no guess finds it, whatever the hash."""

PREFIX = "hr_"
"""Lets scanners for leaked secrets recognize a key."""

_EXIT_WRONG_USE = 2


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status.

    The entry goes to standard output. The key goes to a file that only its owner
    can read, or to standard error: it is shown once and stored nowhere else.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    for name in filter(None, (given.name, given.tenant)):
        if not re.fullmatch(NAME_PATTERN, name):
            parser.error(f"{name!r} is no name: at most 64 letters, digits, dots, dashes and underscores")
    key = new_key()
    try:
        if given.out:
            _write_privately(Path(given.out), key)
    except OSError as error:
        sys.stderr.write(f"headrace key: cannot write {given.out}: {error.strerror}\n")
        return _EXIT_WRONG_USE
    if not given.out:
        sys.stderr.write(f"{key}\n")
    sys.stdout.write(entry(given.name, key, tenant=given.tenant, roles=given.role or [Role.USE]))
    return 0


def new_key() -> str:
    """Returns a new random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def entry(name: str, key: str, *, tenant: str, roles: Sequence[str]) -> str:
    """Returns what the access file has to say of a key."""
    lines = [f'[keys."{name}"]', f'sha256 = "{hash_key(key).hex()}"']
    if tenant:
        lines.append(f'tenant = "{tenant}"')
    listed = ", ".join(f'"{role}"' for role in roles)
    return "\n".join([*lines, f"roles = [{listed}]", ""])


def _write_privately(path: Path, key: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{key}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace key",
        description="Makes a key. Append what it prints to the access file: headrace key NAME --out KEYFILE >> FILE",
    )
    parser.add_argument("name", help="what logs call the key")
    parser.add_argument("--tenant", default="", help="for whom its holder calls (default: the name)")
    parser.add_argument(
        "--role",
        action="append",
        choices=[role.value for role in Role],
        help="what it opens; may be repeated (default: use)",
    )
    parser.add_argument("--out", metavar="FILE", help="write the key here, in place of standard error")
    return parser
