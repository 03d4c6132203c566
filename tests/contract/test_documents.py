"""The documents say what is true: links lead somewhere, code compiles, tables match the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.contract.errors import HeadraceError
from headrace.services.status import CODES

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|TBD)\b")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """Returns a document without its code and without the map of the code, which has a test of its own."""
    text = re.sub(r"<!-- code map: begin.*<!-- code map: end -->", "", path.read_text(), flags=re.DOTALL)
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """Returns the anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        address, _, anchor = link.partition("#")
        if re.match(r"\w+:", address):
            continue
        target = (path.parent / address).resolve() if address else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_in_documents_compiles_and_its_imports_exist(path: Path) -> None:
    for language, code in FENCE.findall(path.read_text()):
        if language != "python":
            continue
        tree = compile(code, name_of(path), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(body=list(imports), type_ignores=[]), name_of(path), "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_and_targets_named_in_documents_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", path.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    sources = {source.as_posix() for source in (source.relative_to(ROOT) for source in FILES)}
    for named in re.findall(r"`([a-z_/.-]+/[a-z_]+\.(?:py|proto))`", prose(path)):
        # `router/scheduler.py` is short for `router/headrace/router/scheduler.py`.
        assert any(source == named or source.endswith(f"/{named}") for source in sources), named


def test_the_map_of_the_code_is_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "code_map.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_table_of_errors_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "contract.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)`", text, re.MULTILINE)
    documented = {reason: code for code, reason in rows}
    concrete = {kind: code.name for kind, code in CODES.items() if not kind.__subclasses__()}
    expected = {kind.reason: code for kind, code in concrete.items()} | {HeadraceError.reason: "INTERNAL"}
    assert documented == expected


def test_nothing_is_left_unfinished() -> None:
    texts = [path for path in FILES if path.suffix not in {".gguf", ".png"} and path != Path(__file__)]
    assert {name_of(path): found for path in texts if (found := UNFINISHED.findall(path.read_text()))} == {}
