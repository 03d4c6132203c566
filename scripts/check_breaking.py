"""Checks that the public contract still understands every state of it that was promised.

The working tree is compared, by `buf breaking`, with each of the last states of
`proto/headrace/v1` in the history of HEAD, newest first. A commit message with a trailer

    Contract-Break: why the break was worth it

ends the walk: what was before that commit is no longer promised. The break is
printed. Such trailers count only while the project's version is below 1.0;
from then on a break needs a new package beside `headrace.v1`.

Comparing with every state, and not only with the newest, makes the outcome
independent of how commits were pushed: a fresh clone of main says the same as
the branch did before it.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMISED = "proto/headrace/v1"
TRAILER = "Contract-Break"
VIOLATIONS_FOUND = 100
"""The exit status by which buf reports violations; others are failures of buf."""


class CheckFailed(Exception):
    """The comparison itself could not be made."""


class StateInvalid(CheckFailed):
    """An old state of the contract does not compile, so nobody can rely on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A commit that changed the promised files."""

    commit: str
    subject: str
    break_reason: str
    """The trailer's text; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A git checkout and the buf that checks its contract."""

    root: Path
    buf: Path

    def git(self, *arguments: str) -> str:
        """Returns what a git command prints.

        Raises:
            CheckFailed: the command failed.
        """
        return self._git_bytes(*arguments).decode()

    def _git_bytes(self, *arguments: str) -> bytes:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, check=False)
        if done.returncode != 0:
            raise CheckFailed(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return done.stdout

    def changes(self, limit: int) -> Iterator[Change]:
        """Yields the commits that changed the promised files, newest first, at most `limit`."""
        pretty = f"--format=%H%x1f%s%x1f%(trailers:key={TRAILER},valueonly,unfold,separator=%x20)%x1e"
        log = self.git("log", f"--max-count={limit}", pretty, "--", PROMISED)
        for record in filter(None, (part.strip("\n") for part in log.split("\x1e"))):
            commit, subject, reason = record.split("\x1f")
            yield Change(commit=commit, subject=subject, break_reason=reason.strip())

    def is_shallow(self) -> bool:
        """Whether the history is cut off somewhere."""
        return self.git("rev-parse", "--is-shallow-repository").strip() == "true"

    def parent(self, commit: str) -> str | None:
        """Returns the first parent; None for a root or where a shallow clone is cut off."""
        parents = self.git("rev-list", "--parents", "--max-count=1", commit).split()[1:]
        return parents[0] if parents else None

    def is_stable(self, commit: str) -> bool:
        """Whether the project's version at a commit is 1.0 or later."""
        project = tomllib.loads(self.git("show", f"{commit}:pyproject.toml"))["project"]
        return int(project["version"].partition(".")[0]) >= 1

    def has_contract(self, commit: str) -> bool:
        """Whether the promised files exist at a commit."""
        return bool(self.git("ls-tree", commit, "--", PROMISED))

    def breaks(self, before: str, after: str | None = None) -> str:
        """Returns what buf says against replacing one state by another; empty if nothing.

        Args:
            before: A commit.
            after: A commit; None means the working tree.

        Raises:
            StateInvalid: the earlier state does not compile.
            CheckFailed: buf could not compare them.
        """
        with tempfile.TemporaryDirectory() as scratch:
            old = self._unpack(before, Path(scratch) / "old")
            new = self.root / "proto" if after is None else self._unpack(after, Path(scratch) / "new")
            # Done apart, because buf reports an error in the old files and a break by the same exit status.
            if subprocess.run([self.buf, "build", old], capture_output=True, check=False).returncode != 0:
                raise StateInvalid(f"{before[:10]} does not compile, so it promises nothing")
            command = [str(self.buf), "breaking", str(new), "--against", str(old)]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode not in {0, VIOLATIONS_FOUND}:
                raise CheckFailed(f"buf breaking against {before[:10]}: {done.stderr.strip()}")
            return done.stdout.strip().replace(f"{new}/", "proto/")

    def _unpack(self, commit: str, target: Path) -> Path:
        archive = self._git_bytes("archive", "--format=tar", commit, "--", "proto")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(target, filter="data")
        return target / "proto"


def check(repository: Repository, limit: int) -> bool:
    """Prints the verdict on the last `limit` states; returns whether every promise is kept."""
    compared_count = 0
    broken: list[str] = []
    for change in repository.changes(limit):
        try:
            said = repository.breaks(change.commit)
        except StateInvalid as invalid:
            print(invalid)
            continue
        compared_count += 1
        if said:
            broken.append(f"{said}\n  broken since {change.commit[:10]} ({change.subject})")
        if change.break_reason and _is_allowed(repository, change):
            break
    for text in dict.fromkeys(broken):
        print(text)
    if broken:
        print(f"If a break is meant, commit it with a trailer `{TRAILER}: why`.")
    print(f"The contract was compared with its last {compared_count} states.")
    if repository.is_shallow():
        print("This clone is shallow, so older states were not seen; `git fetch --unshallow` brings them.")
    return not broken


def _is_allowed(repository: Repository, change: Change) -> bool:
    """Prints a declared break; returns whether the version permits it."""
    parent = repository.parent(change.commit)
    if repository.is_stable(change.commit):
        print(f"{change.commit[:10]} declares a break, but from 1.0 on only a new package may break the contract.")
        return False
    print(f"{change.commit[:10]} broke the contract on purpose: {change.break_reason}")
    if parent is not None and repository.has_contract(parent):
        print(repository.breaks(parent, change.commit) or "  (buf finds no break in it)")
    return True


def main() -> int:
    """Runs the check on this checkout; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--buf", type=Path, default=Path("build/buf/node_modules/.bin/buf"), help="the buf to run")
    parser.add_argument("--limit", type=int, default=50, help="how many states of the contract to compare with")
    arguments = parser.parse_args()
    if not arguments.buf.exists():
        print(f"{arguments.buf} does not exist; `make proto-check` installs it", file=sys.stderr)
        return 2
    try:
        is_kept = check(Repository(root=ROOT, buf=arguments.buf.absolute()), arguments.limit)
    except CheckFailed as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
