"""The metadata of GGUF files, against the package that defines the format."""

import struct
from pathlib import Path

import gguf
import pytest

from headrace.contract.errors import StartupError
from headrace.router.gguf_metadata import GgufValue, read_gguf_metadata

EVERY_TYPE = [
    ("add_uint8", 250),
    ("add_int8", -5),
    ("add_uint16", 65000),
    ("add_int16", -300),
    ("add_uint32", 4_000_000_000),
    ("add_int32", -70_000),
    ("add_float32", 0.5),
    ("add_bool", True),
    ("add_string", "größer ☃"),
    ("add_array", [1, -2, 3]),
    ("add_array", [0.25, 0.5]),
    ("add_array", ["", "a", "日本"]),
    ("add_array", [[1, 2], [3]]),
    ("add_uint64", 2**63),
    ("add_int64", -(2**62)),
    ("add_float64", 1e300),
]


def write(path: Path) -> dict[str, object]:
    writer = gguf.GGUFWriter(path, "llama")
    written: dict[str, object] = {}
    for index, (method, value) in enumerate(EVERY_TYPE):
        getattr(writer, method)(f"key.{index}", value)
        written[f"key.{index}"] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return written


def as_tuples(value: object) -> object:
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


def test_reads_what_the_reference_package_writes(tmp_path: Path) -> None:
    written = write(tmp_path / "model.gguf")
    metadata = read_gguf_metadata(tmp_path / "model.gguf")
    assert metadata == {"general.architecture": "llama"} | {key: as_tuples(value) for key, value in written.items()}


def test_keeps_the_types_of_values(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf")
    metadata = read_gguf_metadata(tmp_path / "model.gguf")
    assert [type(value) for value in metadata.values()] == [str] + [int] * 6 + [float, bool, str] + [tuple] * 4 + [
        int,
        int,
        float,
    ]


def test_example_model_has_its_vocabulary(example_metadata: dict[str, GgufValue]) -> None:
    tokens, merges = example_metadata["tokenizer.ggml.tokens"], example_metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, tuple)
    assert isinstance(merges, tuple)
    assert (len(tokens), len(merges)) == (49152, 48900)
    assert tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert example_metadata["llama.context_length"] == 8192


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(StartupError, match=r"model\.gguf"):
            read_gguf_metadata(path)


def test_a_damaged_array_length_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    key = b"a"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, 2**60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(StartupError, match="ends within its metadata"):
        read_gguf_metadata(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot read"),
        (b"PK\x03\x04 something else", "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 99), "unknown GGUF type 99"),
    ],
)
def test_what_is_no_gguf_file_is_explained(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=complaint):
        read_gguf_metadata(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"nothing\.gguf"):
        read_gguf_metadata(tmp_path / "nothing.gguf")
