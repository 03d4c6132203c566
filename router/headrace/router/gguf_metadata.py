"""Reads the metadata of a GGUF file without touching its tensors.

The `gguf` package indexes every tensor and keeps each value of an array as a view
of its own: seconds for a vocabulary. A router only needs the metadata.
"""

import mmap
import struct
from pathlib import Path

from headrace.contract.errors import StartupError

GgufValue = bool | int | float | str | tuple["GgufValue", ...]

_MAGIC = b"GGUF"
_STRING_TYPE = 8
_ARRAY_TYPE = 9
_NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct formats by GGUF value type."""

_DEEPEST_ARRAY = 4


def read_gguf_metadata(path: Path) -> dict[str, GgufValue]:
    """Returns every key of the file's header; arrays become tuples.

    Bytes that are no UTF-8 are replaced.

    Raises:
        StartupError: the file cannot be read or is no little-endian GGUF file of version 2 or 3.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).metadata()
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot read the GGUF file {path}: {error}") from error
    except (struct.error, IndexError) as error:
        raise StartupError(f"the GGUF file {path} ends within its metadata: is the download complete?") from error


class _Reader:
    """Walks a header from front to back."""

    __slots__ = ("_data", "_offset", "_path")

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._offset = 0
        self._path = path

    def metadata(self) -> dict[str, GgufValue]:
        if self._data[:4] != _MAGIC:
            raise StartupError(f"{self._path} is no GGUF file: it starts with {self._data[:4]!r}")
        self._offset = 4
        version = self._number("I")
        if version not in (2, 3):
            # A big-endian file shows its version in the upper bytes.
            raise StartupError(
                f"{self._path} is GGUF version {version}; versions 2 and 3, little-endian, are understood"
            )
        self._number("Q")
        key_count = self._number("Q")
        metadata: dict[str, GgufValue] = {}
        for _ in range(int(key_count)):
            key = self._strings(1)[0]
            metadata[key] = self._value(int(self._number("I")), depth=0)
        return metadata

    def _value(self, value_type: int, *, depth: int) -> GgufValue:
        if value_type == _STRING_TYPE:
            return self._strings(1)[0]
        if value_type == _ARRAY_TYPE:
            return self._array(depth=depth + 1)
        return self._number(self._format(value_type))

    def _array(self, *, depth: int) -> tuple[GgufValue, ...]:
        item_type = int(self._number("I"))
        count = int(self._number("Q"))
        # An item takes a byte or more: a damaged count must not become a loop for hours.
        if count > len(self._data) or depth > _DEEPEST_ARRAY:
            raise IndexError
        if item_type == _STRING_TYPE:
            return tuple(self._strings(count))
        if item_type == _ARRAY_TYPE:
            return tuple(self._array(depth=depth + 1) for _ in range(count))
        layout = struct.Struct(f"<{count}{self._format(item_type)}")
        values = layout.unpack_from(self._data, self._offset)
        self._offset += layout.size
        return values

    def _strings(self, count: int) -> list[str]:
        """Returns strings that lie one after another. One loop, since a vocabulary has 100,000 of them."""
        data, offset = self._data, self._offset
        read_length = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            start = offset + 8
            offset = start + read_length(data, offset)[0]
            if offset > len(data):
                raise IndexError
            strings.append(data[start:offset].decode("utf-8", "replace"))
        self._offset = offset
        return strings

    def _number(self, number_format: str) -> bool | int | float:
        layout = struct.Struct("<" + number_format)
        value: bool | int | float = layout.unpack_from(self._data, self._offset)[0]
        self._offset += layout.size
        return value

    def _format(self, value_type: int) -> str:
        number_format = _NUMBER_FORMATS.get(value_type)
        if number_format is None:
            raise StartupError(f"{self._path} holds a value of the unknown GGUF type {value_type}")
        return number_format
