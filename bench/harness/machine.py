"""What one has to know of the machine to compare its numbers with another's."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, object]:
    """Returns the machine and the versions that decide the speed."""
    return {
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "grpcio": version("grpcio"),
    }


def revision() -> str:
    """Returns the commit that is measured, marked if the tree has changes."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    features = ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    flags = facts.get("flags", "").split()
    known = [name for name in features if name in flags]
    return f"{facts.get('model name', platform.machine())} with {', '.join(known) or 'no wide vectors'}"
