"""The guard of the public contract finds breaks in history, honours declared ones, and forgives repaired ones."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "build" / "buf" / "node_modules" / ".bin" / "buf"
CONTRACT = "proto/headrace/v1/thing.proto"
IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")

pytestmark = pytest.mark.skipif(not BUF.exists(), reason="buf is not installed; `make proto-check` installs it")


class Checkout:
    """A git repository with a small contract."""

    def __init__(self, root: Path, guard: ModuleType) -> None:
        self.root = root
        self.guard = guard
        self.git("init", "--quiet", "--initial-branch=main")
        self.write_version("0.1.0")
        (root / "proto").mkdir()
        (root / "proto" / "buf.yaml").write_text("version: v2\nbreaking:\n  use:\n    - FILE\n")

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *IDENTITY, *arguments], cwd=self.root, check=True, capture_output=True)

    def write_version(self, version: str) -> None:
        (self.root / "pyproject.toml").write_text(f'[project]\nname = "x"\nversion = "{version}"\n')

    def write(self, *fields: str) -> None:
        path = self.root / CONTRACT
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "".join(f"  {field};\n" for field in fields)
        path.write_text(f'syntax = "proto3";\npackage headrace.v1;\nmessage Thing {{\n{body}}}\n')

    def commit(self, *fields: str, message: str = "Change") -> None:
        self.write(*fields)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", message)

    def is_kept(self, limit: int = 50) -> bool:
        repository = self.guard.Repository(root=self.root, buf=BUF)
        return bool(self.guard.check(repository, limit))


@pytest.fixture
def checkout(tmp_path: Path, load_script: Callable[[str], ModuleType]) -> Checkout:
    made = Checkout(tmp_path, load_script("check_breaking"))
    made.commit("string a = 1", "string b = 2")
    return made


def test_additions_keep_every_promise(checkout: Checkout) -> None:
    checkout.commit("string a = 1", "string b = 2", "string c = 3")
    checkout.write("string a = 1", "string b = 2", "string c = 3", "string d = 4")
    assert checkout.is_kept()


def test_a_break_in_the_working_tree_is_found(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.write("string a = 1", "int32 b = 2")
    assert not checkout.is_kept()
    said = capsys.readouterr().out
    assert "changed type" in said
    assert CONTRACT in said
    assert "Contract-Break" in said


def test_a_break_that_was_pushed_under_a_later_commit_is_found(checkout: Checkout) -> None:
    checkout.commit("string a = 1")
    checkout.commit("string a = 1", "string c = 3")
    assert not checkout.is_kept()


def test_a_break_that_was_repaired_is_forgiven(checkout: Checkout) -> None:
    checkout.commit("string a = 1")
    checkout.commit("string a = 1", "string b = 2", "string c = 3")
    assert checkout.is_kept()


def test_a_declared_break_ends_what_was_promised(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.commit("string a = 1", message="Drop b\n\nContract-Break: nobody could use b\n")
    checkout.commit("string a = 1", "string c = 3")
    assert checkout.is_kept()
    said = capsys.readouterr().out
    assert "nobody could use b" in said
    assert "deleted" in said  # what was broken is shown


def test_a_declaration_covers_nothing_that_comes_after_it(checkout: Checkout) -> None:
    checkout.commit("string a = 1", message="Drop b\n\nContract-Break: nobody could use b\n")
    checkout.commit("int32 a = 1")
    assert not checkout.is_kept()


def test_from_1_0_on_a_declaration_does_not_help(checkout: Checkout) -> None:
    checkout.write_version("1.0.0")
    checkout.commit("string a = 1", message="Drop b\n\nContract-Break: nobody could use b\n")
    assert not checkout.is_kept()


def test_a_state_that_never_compiled_promised_nothing(checkout: Checkout) -> None:
    checkout.commit("string a = 1", "strong b = 2")
    checkout.commit("string a = 1", "string b = 2")
    assert checkout.is_kept()


def test_a_shallow_clone_says_that_it_is_one(
    checkout: Checkout, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.commit("string a = 1")
    checkout.commit("string a = 1", "string c = 3")
    clone = tmp_path_factory.mktemp("clone")
    checkout.git("clone", "--quiet", "--depth=1", f"file://{checkout.root}", str(clone))
    shallow = checkout.guard.Repository(root=clone, buf=BUF)
    assert checkout.guard.check(shallow, 50)
    assert "shallow" in capsys.readouterr().out
