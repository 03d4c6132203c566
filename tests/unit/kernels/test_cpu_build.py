"""How the CPU operators are built, kept and chosen, and what torch knows of them."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from headrace.kernels import build as build_module
from headrace.kernels.build import BuildFailed, build, default_cache_folder, namespace_of
from headrace.kernels.cpu import load_cpu_kernels
from headrace.kernels.dispatch import KernelsUnavailable, select
from headrace.kernels.instruction_sets import INSTRUCTION_SETS, PORTABLE, InstructionSet, supported

COMPILER = """#!{python}
import pathlib, sys, time
if "--version" in sys.argv:
    sys.exit(print("compiler 1"))
with open({log!r}, "a") as log:
    log.write(sys.argv[sys.argv.index("-o") + 1] + "\\n")
if {fails}:
    sys.exit("rows.cpp: In function\\nrows.cpp:3:1: error: it is Monday")
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("built")
"""


def install_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, *, fails: bool = False) -> Path:
    """Puts a compiler on the path that writes down its outputs; returns where."""
    log = folder / "log"
    log.touch()
    compiler = folder / "g++"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(log), fails=fails))
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return log


def test_a_build_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = install_compiler(monkeypatch, tmp_path)
    messages: list[str] = []
    library = build(PORTABLE, tmp_path / "cache", messages.append)
    assert library.read_text() == "built"
    assert len(messages) == 1
    assert str(tmp_path / "cache") in messages[0]
    outputs = log.read_text().splitlines()
    assert len(outputs) == len(list(build_module.SOURCE_FOLDER.glob("*.cpp"))) + 1
    assert build(PORTABLE, tmp_path / "cache", messages.append) == library
    assert (log.read_text().splitlines(), len(messages)) == (outputs, 1)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".so", ".lock"}


def test_another_instruction_set_is_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_compiler(monkeypatch, tmp_path)
    libraries = {build(candidate, tmp_path / "cache", lambda _: None) for candidate in INSTRUCTION_SETS}
    assert len(libraries) == len(INSTRUCTION_SETS)


def test_builds_at_the_same_time_compile_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = install_compiler(monkeypatch, tmp_path)
    threads = [threading.Thread(target=build, args=(PORTABLE, tmp_path / "cache", lambda _: None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.read_text().splitlines()) == len(list(build_module.SOURCE_FOLDER.glob("*.cpp"))) + 1


def test_a_failed_build_names_the_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_compiler(monkeypatch, tmp_path, fails=True)
    with pytest.raises(BuildFailed, match="error: it is Monday"):
        build(PORTABLE, tmp_path / "cache", lambda _: None)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_without_a_compiler_auto_is_the_reference_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    messages: list[str] = []
    assert select(torch.device("cpu"), progress=messages.append).name == "reference"
    assert "there is no C++ compiler" in messages[-1]
    with pytest.raises(KernelsUnavailable, match="there is no C\\+\\+ compiler"):
        select(torch.device("cpu"), "cpu")


def test_a_worse_build_stands_in_for_a_failed_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impossible = InstructionSet(name="impossible", capabilities=frozenset(), compiler_flags=("-mno-such-instructions",))
    messages: list[str] = []
    real_build = build_module.build

    def build_or_fail(candidate: InstructionSet, folder: Path, progress: object) -> Path:
        if candidate is impossible:
            raise BuildFailed("unknown flag")
        return real_build(candidate, default_cache_folder(), messages.append)

    monkeypatch.setattr("headrace.kernels.cpu.build", build_or_fail)
    assert load_cpu_kernels(tmp_path, messages.append, candidates=(impossible, PORTABLE)).name == "cpu"
    assert messages[0] == "no impossible operators: unknown flag"


def test_auto_is_the_cpu_version_on_a_cpu() -> None:
    assert select(torch.device("cpu")).name == "cpu"


def test_another_device_has_no_cpu_version() -> None:
    with pytest.raises(KernelsUnavailable, match="do not run on meta"):
        select(torch.device("meta"), "cpu")


@pytest.mark.parametrize(
    ("capabilities", "best"),
    [
        ({}, "portable"),
        ({"avx2": True, "fma3": True}, "avx2"),
        ({"avx2": True, "fma3": False}, "portable"),
        (dict.fromkeys(INSTRUCTION_SETS[1].capabilities, True), "avx512_bf16"),
        (dict.fromkeys(INSTRUCTION_SETS[0].capabilities, True), "amx"),
    ],
)
def test_the_best_instructions_that_the_processor_has(capabilities: dict[str, bool], best: str) -> None:
    names = [candidate.name for candidate in supported(capabilities)]
    assert (names[0], names[-1]) == (best, "portable")


def test_torch_can_trace_the_operators() -> None:
    select(torch.device("cpu"), "cpu")
    operators = getattr(torch.ops, namespace_of(supported(torch.cpu.get_capabilities())[0]))
    x, weight = torch.randn(3, 32), torch.randn(32)
    panels = operators.pack_weight(torch.randn(64, 32), False)
    query, cache = torch.randn(3, 4, 8), torch.randn(2, 2, 4, 8)
    slots, starts, contexts = torch.tensor([0, 1, 2]), torch.tensor([0, 3]).int(), torch.tensor([3]).int()
    table = torch.tensor([[0]], dtype=torch.int32)
    columns = (torch.ones(3), torch.zeros(3, dtype=torch.int64), torch.ones(3), slots, slots)
    calls: dict[str, tuple[object, ...]] = {
        "rms_norm": (x, weight, 1e-5),
        "add_rms_norm": (x.clone(), x.clone(), weight, 1e-5),
        "silu_mul": (x,),
        "rotary_and_write_kv": (
            query,
            query[:, :2],
            query[:, 2:],
            slots,
            torch.randn(8, 8),
            cache.clone(),
            cache.clone(),
            slots,
        ),
        "paged_attention": (query, cache, cache.clone(), table, starts, contexts, 0.3),
        "linear": (x, panels, None, None, 64, True, torch.randn(3, 64)),
        "low_rank": (x, slots - 1, [torch.randn(32, 16)] * 2, [torch.randn(9), torch.randn(4)], [3, 0, 0, 1], [3, 4]),
        "likeliest": (x,),
        "keep_allowed": (x.clone(), slots[:2], torch.tensor([[5], [-2]], dtype=torch.int32)),
        "sample": (x, *columns),
        "logprobs": (x, slots, 2),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(operators, name).default, arguments)


def test_the_operators_load_in_a_fresh_process() -> None:
    code = "import torch; from headrace.kernels.dispatch import select; print(select(torch.device('cpu'), 'cpu').name)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("cpu\n", 0), result.stderr
