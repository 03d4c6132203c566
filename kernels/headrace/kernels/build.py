"""Builds the C++ operators on first use, into a cache that later processes load from."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from headrace.kernels.instruction_sets import InstructionSet

SOURCE_FOLDER = Path(__file__).parent / "cpu"
_COMPILERS = ("g++", "c++", "clang++")
_FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-w")
_BUILD_TIMEOUT_S = 600


class BuildFailed(Exception):
    """The operators cannot be built here; the message says why."""


def default_cache_folder() -> Path:
    """Returns the folder in the user's home that keeps builds."""
    return Path.home() / ".cache" / "headrace" / "kernels"


def namespace_of(instruction_set: InstructionSet) -> str:
    """Returns the namespace in torch.ops of the operators of a build."""
    return f"headrace_{instruction_set.name}"


def build(instruction_set: InstructionSet, cache_folder: Path, progress: Callable[[str], None]) -> Path:
    """Returns the library for an instruction set, built unless the cache has it.

    Processes that want the same build wait for one another; an unfinished build
    is never seen under the name of a finished one.

    Args:
        instruction_set: What the compiler may use.
        cache_folder: Where builds are kept; made if it is missing.
        progress: Told before work that takes seconds.

    Raises:
        BuildFailed: there is no compiler, it cannot build the sources, or the cache cannot be written.
    """
    compiler = _find_compiler()
    flags = (*_FLAGS, *instruction_set.compiler_flags, f"-DHEADRACE_NAMESPACE={namespace_of(instruction_set)}")
    key = _fingerprint(compiler, flags)
    library = cache_folder / f"{instruction_set.name}-{key}.so"
    if library.exists():
        return library
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        with (cache_folder / f"{library.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                progress(f"building the {instruction_set.name} operators with {compiler}, once, in {cache_folder}")
                with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
                    _compile(compiler, flags, Path(folder)).replace(library)
    except OSError as error:
        raise BuildFailed(f"the build folder {cache_folder} cannot be used: {error}") from error
    return library


def _find_compiler() -> str:
    for name in _COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildFailed(f"there is no C++ compiler: none of {', '.join(_COMPILERS)} is on the path")


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """Returns a name for everything that a build depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    digest = hashlib.sha256("\0".join((torch.__version__, version.stdout, *flags)).encode())
    for source in sorted(SOURCE_FOLDER.iterdir()):
        if source.suffix in {".cpp", ".h"}:
            digest.update(b"\0".join((source.name.encode(), source.read_bytes())))
    return digest.hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """Compiles every source at once and links the library in `folder`."""
    # Takes a quarter of a second, and most starts find what they need in the cache.
    from torch.utils import cpp_extension  # noqa: PLC0415

    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    sources = sorted(SOURCE_FOLDER.glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    logs = [folder / f"{source.stem}.log" for source in sources]
    compilations = []
    for source, target, log in zip(sources, objects, logs, strict=True):
        with log.open("w") as output:
            command = [compiler, *flags, *includes, "-c", str(source), "-o", str(target)]
            compilations.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))  # noqa: S603
    for compilation, source in zip(compilations, sources, strict=True):
        try:
            compilation.wait(_BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            for running in compilations:
                running.kill()
                running.wait()
            raise BuildFailed(f"{source.name} was not compiled within {_BUILD_TIMEOUT_S} s") from error
    for compilation, source, log in zip(compilations, sources, logs, strict=True):
        if compilation.returncode != 0:
            raise BuildFailed(f"{compiler} could not compile {source.name}: {_first_error(log.read_text())}")
    library = folder / "operators.so"
    # NOTE: OpenMP's functions are left open. They are found in the runtime that torch has loaded; with one of our own
    # beside it, two pools of threads would fight for the cores.
    link = [compiler, "-shared", *map(str, objects), "-o", str(library)]
    link += [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu"]
    linked = subprocess.run(link, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S)  # noqa: S603
    if linked.returncode != 0:
        raise BuildFailed(f"{compiler} could not link the operators: {_first_error(linked.stderr)}")
    return library


def _first_error(output: str) -> str:
    lines = output.splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "it printed nothing")
