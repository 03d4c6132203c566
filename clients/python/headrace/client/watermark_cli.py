"""`headrace watermark detect`: tests a text for the watermark of a key, with a server's tokenizer."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from headrace.client.chat_cli import explain
from headrace.client.connection_flags import ConnectionKeywords, add_connection_flags, connection_keywords
from headrace.client.sync import Client
from headrace.client.watermark import WatermarkEvidence, detect_with_key
from headrace.contract.errors import HeadraceError
from headrace.contract.watermark import parse_watermark_keys

_EXIT_FAILED = 1
_EXIT_WRONG_USE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    connection = connection_keywords(parser, arguments)
    try:
        keys = parse_watermark_keys(Path(arguments.key_file).read_text(encoding="utf-8"))
        name = arguments.key or next(iter(keys), "")
        if name not in keys:
            parser.error(f"{arguments.key_file} has no key {name!r}")
        evidence = detect_with_key(_token_ids(arguments, connection), keys[name], gamma=arguments.gamma)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"headrace watermark: {error}\n")
        return _EXIT_WRONG_USE
    except HeadraceError as error:
        sys.stderr.write(f"headrace watermark: {explain(error)}\n")
        return _EXIT_FAILED
    sys.stdout.write(f"{json.dumps(asdict(evidence))}\n" if arguments.json else _sentence(evidence, arguments.gamma))
    return 0


def _token_ids(arguments: argparse.Namespace, connection: ConnectionKeywords) -> Sequence[int]:
    data = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8")
    if arguments.token_ids:
        return [int(word) for word in data.split()]
    with Client(arguments.target, **connection) as client:
        return client.tokenize(data, model=arguments.model, add_special_tokens=False).token_ids


def _sentence(evidence: WatermarkEvidence, gamma: float) -> str:
    return (
        f"z = {evidence.z_score:.2f}, p = {evidence.p_value:.2g}: {evidence.green_count} of {evidence.token_count}"
        f" tokens are on the green list; without the watermark it would be {gamma:.0%} of them\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace watermark", description="Watermarks in text.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    detect = commands.add_parser("detect", help="tests a text for the watermark of a key")
    detect.add_argument("file", nargs="?", default="-", help="the text; - is standard input (default)")
    detect.add_argument("--key-file", required=True, metavar="FILE", help="names and secrets, as the server has them")
    detect.add_argument("--key", default="", metavar="NAME", help="which of them (default: the first)")
    detect.add_argument("--gamma", type=float, default=0.25, help="as when the text was made (default: %(default)s)")
    detect.add_argument("--token-ids", action="store_true", help="the input is token ids; no server is needed then")
    add_connection_flags(detect)
    detect.add_argument("--model", default="", help="whose tokenizer; not needed if the server has just one model")
    detect.add_argument("--json", action="store_true", help="prints the evidence as JSON")
    return parser
