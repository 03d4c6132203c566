"""The flags with which every command of the client is told where a server is and how to speak to it."""

import argparse
import os
from pathlib import Path
from typing import TypedDict

from headrace.client.channel import DEFAULT_TARGET
from headrace.client.tls import Tls

KEY_VARIABLE = "HEADRACE_KEY"
"""Holds the key itself; a flag would show it to everybody who can list processes."""


class ConnectionKeywords(TypedDict):
    """What both clients take beside the target."""

    tls: Tls | None
    key: str


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a command."""
    group = parser.add_argument_group("connection")
    group.add_argument("--target", default=DEFAULT_TARGET, help="HOST:PORT of the server (default: %(default)s)")
    group.add_argument("--tls", action="store_true", help="use TLS, believing public roots or those of --tls-ca-file")
    group.add_argument("--tls-ca-file", metavar="FILE", help="roots of the server's certificate in PEM; implies --tls")
    group.add_argument("--tls-certificate-file", metavar="FILE", help="certificate to show, in PEM; implies --tls")
    group.add_argument("--tls-key-file", metavar="FILE", help="private key of that certificate, in PEM")
    group.add_argument("--bearer-key-file", metavar="FILE", help=f"file with the key to show; else ${KEY_VARIABLE}")


def connection_keywords(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> ConnectionKeywords:
    """Returns what the flags say, as the clients take it; the parser ends the process when a file is of no use."""
    files = {name: getattr(arguments, f"tls_{name}") for name in ("ca_file", "certificate_file", "key_file")}
    tls = Tls(**files) if arguments.tls or any(files.values()) else None
    path = arguments.bearer_key_file
    try:
        if tls is not None:
            tls.credentials()
        key = Path(path).read_text(encoding="utf-8") if path else os.environ.get(KEY_VARIABLE, "")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return {"tls": tls, "key": key.strip()}
