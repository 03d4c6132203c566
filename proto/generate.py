"""Regenerates proto/python from proto/**/*.proto; `--check` only tells whether that would change anything.

The generator is pinned and deliberately old, in an environment of its own:
grpcio-tools 1.71.2 emits protobuf-5.29 gencode, which loads on every runtime
from 5.29 to 7.x. A newer one would raise that floor for engines that pin an
older runtime.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT.parent / "build" / "proto-tools"
PINS = ("grpcio-tools==1.71.2", "mypy-protobuf==3.7.0", "setuptools<81")


def tools() -> Path:
    """Returns the interpreter of the generator's environment, made on first use."""
    python = TOOLS / "bin" / "python"
    stamp = TOOLS / "pins.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(PINS):
        print(f"setting up {', '.join(PINS)} in {TOOLS.relative_to(ROOT.parent)}")
        venv.create(TOOLS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text("\n".join(PINS))
    return python


def generate(out: Path) -> None:
    """Writes modules and stubs under `out`.

    Raises:
        subprocess.CalledProcessError: protoc rejects a file.
    """
    python = tools()
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("headrace/**/*.proto"))
    plugins = [f"--plugin=protoc-gen-{name}={python.parent / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{kind}={out}" for kind in ("python_out", "grpc_python_out")]
    stubs = [f"--{kind}=quiet:{out}" for kind in ("mypy_out", "mypy_grpc_out")]
    subprocess.run(
        [python, "-m", "grpc_tools.protoc", "-I.", *plugins, *outputs, *stubs, *sources], cwd=ROOT, check=True
    )
    for stub in out.glob("headrace/**/*_pb2_grpc.py*"):
        if "Servicer" not in stub.read_text():  # protoc writes one for files without a service, too
            stub.unlink()


def generated(root: Path) -> dict[Path, str]:
    """Returns the generated files under `root`, by relative path."""
    paths = root.glob("headrace/**/*_pb2*.py*")
    return {path.relative_to(root): path.read_text() for path in paths if path.suffix in {".py", ".pyi"}}


def main() -> int:
    """Replaces the checked-in output, only once generation has succeeded, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is out of date")
    arguments = parser.parse_args()
    checked_in = generated(ROOT / "python")
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = generated(Path(scratch))
        changed = sorted(path for path in fresh.keys() | checked_in.keys() if fresh.get(path) != checked_in.get(path))
        if arguments.check:
            for path in changed:
                print(f"proto/python/{path} is out of date; run `make proto` and commit the outcome")
            return 1 if changed else 0
        for stale in checked_in.keys() - fresh.keys():
            (ROOT / "python" / stale).unlink()
        shutil.copytree(scratch, ROOT / "python", dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
