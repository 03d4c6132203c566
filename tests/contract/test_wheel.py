"""The wheel holds every part and nothing else, and its base install is a working client."""

import email
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"client", "contract", "internal", "kernels", "router", "services", "shard", "v1"}
EXTRAS = {"router", "shard", "rest", "all", "tracing", "flash-attn", "vllm", "tensorrt-llm"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    [path] = folder.glob("*.whl")
    return zipfile.Path(path)


@pytest.fixture(scope="module")
def unpacked(wheel: zipfile.Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip would lay it out: all of it is pure Python."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.root.extractall(folder)
    return folder


def requirements(path: Path) -> list[Requirement]:
    [metadata_file] = path.glob("*.dist-info/METADATA")
    message = email.message_from_string(metadata_file.read_text())
    return [Requirement(line) for line in message.get_all("Requires-Dist", [])]


def closure(wanted: list[Requirement]) -> dict[str, metadata.Distribution]:
    """Returns the installed distributions that an installation without extras would bring."""
    found: dict[str, metadata.Distribution] = {}
    open_ends = list(wanted)
    while open_ends:
        requirement = open_ends.pop()
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[requirement.name] = metadata.distribution(requirement.name)
        open_ends += [Requirement(line) for line in found[requirement.name].requires or []]
    return found


def test_every_part_is_inside_and_nothing_else(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"headrace"}
    assert {path.name for path in (unpacked / "headrace").iterdir()} == PARTS
    roots = ("proto/python", "services", "router", "shard", "kernels", "clients/python")
    for suffix in (".py", ".pyi", ".cpp", ".h", ".html", ".css", ".js", ".svg"):
        shipped = {path.relative_to(unpacked) for path in unpacked.rglob(f"*{suffix}")}
        ours = {
            path.relative_to(ROOT / root) for root in roots for path in (ROOT / root).glob(f"headrace/**/*{suffix}")
        }
        assert shipped == ours
    assert len(list(unpacked.glob("headrace/*/py.typed"))) == len(PARTS)


def test_the_metadata_names_the_extras_and_the_licence(unpacked: Path) -> None:
    [folder] = unpacked.glob("*.dist-info")
    message = email.message_from_string((folder / "METADATA").read_text())
    assert set(message.get_all("Provides-Extra", [])) == EXTRAS
    assert message["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (folder / "licenses" / "LICENSE").read_text()


def test_the_base_install_is_a_client_without_torch(unpacked: Path, tmp_path: Path) -> None:
    """Only what the base requirements bring is on the path, so a missing one shows."""
    dependencies = closure(requirements(unpacked))
    assert {"torch", "numpy", "pydantic", "structlog", "tokenizers"}.isdisjoint(dependencies)
    link_top_levels(dependencies, tmp_path)
    script = (
        f"import sys; sys.path[:0] = [{str(unpacked)!r}, {str(tmp_path)!r}]\n"
        "import headrace.client, headrace.v1.generate_service_pb2_grpc\n"
        f"assert headrace.client.__file__.startswith({str(unpacked)!r})\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=60)


def link_top_levels(distributions: dict[str, metadata.Distribution], folder: Path) -> None:
    """Links what each distribution installed into `folder`, two levels deep: `google` belongs to several."""
    for distribution in distributions.values():
        for file in distribution.files or []:
            if file.parts[0] == ".." or file.parts[0].endswith(".pth"):
                continue
            target = folder / Path(*file.parts[:2])
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(""))) / Path(*file.parts[:2]))
