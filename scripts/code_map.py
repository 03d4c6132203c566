"""Writes the map of the code into docs/architecture.md: one line for each file, taken from the file itself.

A Python file's line is the first of its docstring; that of another source file
is its first comment, and a C++ file stands with its header. So the map is right
when the files are, and a test (`--check`) fails while it is not up to date.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- code map: begin (written by `make fmt`) -->"
END = "<!-- code map: end -->"
FOLDERS = {
    "proto/headrace": "The contracts, as they go over the wire",
    "proto/python/headrace/contract": "What two parts of headrace have to agree on",
    "proto": "The generator of the code in `proto/python/headrace/{v1,internal}`",
    "clients/python/headrace/client": "The Python client",
    "services/headrace/services": "The edges: servers, channels, settings, start-up",
    "router/headrace/router": "The control plane, free of transport",
    "shard/headrace/shard": "The data plane, free of transport",
    "kernels/headrace/kernels": "Operators",
    "scripts": "What the Makefile calls",
    "bench": "Benchmarks",
}
"""Folders in the order of the map; a file is listed under the first that holds it."""
SUFFIXES = {".py", ".proto", ".cpp", ".h", ".cu", ".sh"}
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")


class RoleMissing(Exception):
    """A file does not say what it is for."""


def source_files() -> Iterator[Path]:
    """Yields every source file that is written by hand, the tests left out."""
    for folder in FOLDERS:
        pattern = "*" if folder == "proto" else "**/*"
        for path in sorted((ROOT / folder).glob(pattern)):
            is_ours = path.suffix in SUFFIXES and path.name != "__init__.py" and not GENERATED.search(path.name)
            has_header = path.suffix == ".cpp" and path.with_suffix(".h").exists()
            if is_ours and not has_header and "__pycache__" not in path.parts:
                yield path


def role(path: Path) -> str:
    """Returns what a file says of itself, in one sentence.

    Raises:
        RoleMissing: it says nothing.
    """
    text = path.read_text()
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        # In a .proto file the first comment is that of its first message or service.
        begin = r"^" if path.suffix == ".proto" else r"\A(?:#!.*\n)?"
        comment = re.search(begin + r"(?://|#) (.+(?:\n(?://|#) \S.*)*)", text, re.MULTILINE)
        joined = re.sub(r"\n(?://|#) ", " ", comment[1]) if comment else ""
        said = re.split(r"(?<=[.]) ", joined)[0]
    if not said:
        raise RoleMissing(f"{path.relative_to(ROOT)} does not begin with a sentence on what it is for")
    return said.rstrip(".:")


def code_map() -> str:
    """Returns the map as Markdown tables, one for each folder.

    Raises:
        RoleMissing: a file says nothing of itself.
    """
    parts: list[str] = []
    files = list(source_files())
    for folder, title in FOLDERS.items():
        rows = [path for path in files if path.is_relative_to(ROOT / folder)]
        if rows:
            lines = [f"**`{folder}/`**: {title}\n", "| file | role |", "|---|---|"]
            lines += [f"| {_name(path, folder)} | {_cell(role(path))} |" for path in rows]
            parts.append("\n".join(lines))
            files = [path for path in files if path not in rows]
    return "\n\n".join(parts)


def _name(path: Path, folder: str) -> str:
    body = ", `.cpp`" if path.suffix == ".h" and path.with_suffix(".cpp").exists() else ""
    return f"`{path.relative_to(ROOT / folder)}`{body}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def replaced(document: str) -> str:
    """Returns the document with the text between the two markers replaced by the map."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{code_map()}\n\n{END}{after}"


def main() -> int:
    """Writes or checks the map; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="bring the document up to date")
    mode.add_argument("--check", action="store_true", help="exit with 1 if the document is out of date")
    arguments = parser.parse_args()
    document = DOCUMENT.read_text()
    try:
        fresh = replaced(document)
    except RoleMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    if arguments.check and fresh != document:
        print(f"the map of the code in {DOCUMENT.relative_to(ROOT)} is out of date; run `make fmt`", file=sys.stderr)
        return 1
    if arguments.write:
        DOCUMENT.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
