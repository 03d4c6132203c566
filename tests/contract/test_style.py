"""Rules of this project that no linter knows: sizes, and that tasks have owners."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("proto", "clients", "services", "router", "shard", "kernels", "scripts", "bench", "tests")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if "_pb2" not in path.name and "__pycache__" not in path.parts
)
TASK_MAKERS = {"create_task", "ensure_future"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def oversizes(path: Path) -> Iterator[str]:
    file_limit, function_limit = (600, 80) if path.is_relative_to(ROOT / "tests") else (400, 60)
    text = path.read_text()
    if (line_count := len(text.splitlines())) > file_limit:
        yield f"{name_of(path)}: {line_count} lines, the limit is {file_limit}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line_count = (node.end_lineno or node.lineno) - node.lineno + 1
            if line_count > function_limit:
                yield f"{name_of(path)}: {node.name} has {line_count} lines, the limit is {function_limit}"


def test_files_and_functions_can_be_held_in_the_head() -> None:
    found = [oversize for path in SOURCES for oversize in oversizes(path)]
    assert not found, "\n".join(found)


def lost_tasks(tree: ast.Module) -> Iterator[str]:
    """Yields the targets of tasks that are assigned and never looked at again.

    ruff finds a task that is not assigned at all. One that is only assigned is
    no better: nobody cancels it and nobody learns of its exception.
    """
    read = {
        (type(node), node.attr if isinstance(node, ast.Attribute) else node.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not makes_task(node.value):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and (ast.Name, target.id) not in read:
                yield target.id
            if isinstance(target, ast.Attribute) and (ast.Attribute, target.attr) not in read:
                yield target.attr


def makes_task(value: ast.expr | None) -> bool:
    """Whether an expression starts a task outside of a task group."""
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr in TASK_MAKERS
        and not (isinstance(value.func.value, ast.Name) and value.func.value.id in {"group", "tasks"})
    )


def test_every_task_has_an_owner() -> None:
    sources = [path for path in SOURCES if not path.is_relative_to(ROOT / "tests")]
    found = {name_of(path): list(lost_tasks(ast.parse(path.read_text()))) for path in sources}
    assert {name: lost for name, lost in found.items() if lost} == {}


def test_a_task_without_an_owner_is_noticed() -> None:
    kept = "self._task = asyncio.create_task(run())\nself._task.cancel()"
    lost = "self._task = asyncio.create_task(run())"
    assert list(lost_tasks(ast.parse(kept))) == []
    assert list(lost_tasks(ast.parse(lost))) == ["_task"]
