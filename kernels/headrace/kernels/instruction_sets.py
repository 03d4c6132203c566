"""Sets of processor instructions that the CPU operators are built for, and the best that a processor has."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """What a build may use."""

    name: str
    """Part of the names of the build and of its operators."""
    capabilities: frozenset[str]
    """What the processor must have, as torch.cpu.get_capabilities names it."""
    compiler_flags: tuple[str, ...]
    """NOTE: always named one by one. A compiler that looks by itself (-march=native) trusts the processor's model
    number, which virtual machines make up, and what it builds there dies of an illegal instruction."""
    uses_tiles: bool = False
    """Whether the system must grant the tile registers of AMX."""

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether there are products of bfloat16, which are then faster than those of float32."""
        return "avx512_bf16" in self.capabilities


_SHORT_VECTORS = ("-O2",)
"""Where a vector of ours is several of the processor's. NOTE: at -O3 two of the sources took GCC two minutes and 4 GB
each, and the products took longer by a quarter."""

_AVX2 = InstructionSet(
    name="avx2",
    capabilities=frozenset({"avx2", "fma3"}),
    compiler_flags=(*_SHORT_VECTORS, "-mavx2", "-mfma", "-mtune=skylake"),
)
_AVX512 = InstructionSet(
    name="avx512",
    capabilities=_AVX2.capabilities | {"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"},
    compiler_flags=(
        "-mavx2",
        "-mfma",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mtune=icelake-server",
    ),
)
_AVX512_BF16 = InstructionSet(
    name="avx512_bf16",
    capabilities=_AVX512.capabilities | {"avx512_bf16"},
    compiler_flags=(*_AVX512.compiler_flags, "-mavx512bf16"),
)
_AMX = InstructionSet(
    name="amx",
    capabilities=_AVX512_BF16.capabilities | {"amx_tile", "amx_bf16", "amx_int8"},
    compiler_flags=(*_AVX512_BF16.compiler_flags, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    uses_tiles=True,
)
PORTABLE = InstructionSet(name="portable", capabilities=frozenset(), compiler_flags=_SHORT_VECTORS)
"""What every processor of the architecture has."""
INSTRUCTION_SETS = (_AMX, _AVX512_BF16, _AVX512, _AVX2, PORTABLE)
"""The best first."""


def supported(capabilities: Mapping[str, object]) -> tuple[InstructionSet, ...]:
    """Returns the sets that a processor has, the best first.

    Args:
        capabilities: As torch.cpu.get_capabilities returns them.
    """
    present = {name for name, value in capabilities.items() if value is True}
    return tuple(candidate for candidate in INSTRUCTION_SETS if candidate.capabilities <= present)
