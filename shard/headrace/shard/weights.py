"""Where weights come from: tensors by name, one at a time, so that a model never exists twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from headrace.contract.errors import StartupError
from headrace.kernels.quantization import BlockWeight, stack
from headrace.shard.models.config import ModelConfig, parse_config

_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old files carry and that follow from the configuration."""


class WeightSource(Protocol):
    """A file or folder with a model. Tensors have the names and layouts that Transformers gives them."""

    @property
    def config(self) -> ModelConfig:
        """What the model is made of."""
        ...

    @property
    def sizes_bytes(self) -> Mapping[str, int]:
        """Every tensor's name and its size in the file."""
        ...

    @property
    def stored_type(self) -> str:
        """The type that takes most of the bytes, as files call it: F32, F16, BF16, or a kind of blocks such as Q8_0."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor, on the CPU, in whatever floating-point type it is stored or dequantized to."""
        ...

    def read_blocks(self, name: str) -> BlockWeight | None:
        """Returns a weight of a linear layer in the blocks in which it is stored; None if it is stored otherwise."""
        ...


def most_used_type(sizes_bytes: Iterable[tuple[str, int]]) -> str:
    """Returns the type that takes most bytes, of types and the sizes of tensors."""
    totals: Counter[str] = Counter()
    for name, size_bytes in sizes_bytes:
        totals[name] += size_bytes
    return max(totals, key=totals.__getitem__)


class WeightReader:
    """Hands a source's tensors to a model, keeps account of them and tells how far it is."""

    def __init__(
        self,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[str], None],
        keeps_blocks: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
            source: Where the tensors come from.
            dtype: Of the tensors that are returned.
            device: Where they are put.
            progress: Told how far it is.
            keeps_blocks: Whether `blocks` returns any. On a CPU only: elsewhere no operator reads them.
        """
        self._source = source
        self.dtype = dtype
        """Of the tensors that are returned."""
        self._device = device
        self._progress = progress
        self._keeps_blocks = keeps_blocks and device.type == "cpu"
        self._unread = {name: size for name, size in source.sizes_bytes.items() if not name.endswith(_IGNORED_SUFFIXES)}
        self._total_bytes = sum(self._unread.values())
        self._told_percent = -1

    def read(self, name: str, *shape: int) -> torch.Tensor:
        """Returns a tensor in the model's dtype on its device.

        Raises:
            StartupError: there is no such tensor, it was read before, or it has another shape.
        """
        if name not in self._unread:
            raise StartupError(f"the model's weights have no tensor {name!r}")
        tensor = self._source.read(name)
        if tensor.shape != shape:
            raise StartupError(f"the tensor {name!r} has shape {tuple(tensor.shape)}, the configuration means {shape}")
        del self._unread[name]
        self._tell()
        return tensor.to(device=self._device, dtype=self.dtype)

    def read_stacked(self, name_format: str, heights: Mapping[str, int], *rest: int) -> torch.Tensor:
        """Returns several tensors as one, each below the one before.

        Args:
            name_format: Their name, with `{}` for the part in which they differ.
            heights: That part of each name, and the tensor's first dimension.
            rest: The other dimensions.
        """
        return torch.cat([self.read(name_format.format(part), height, *rest) for part, height in heights.items()])

    def blocks(self, name_format: str, heights: Mapping[str, int], width: int) -> BlockWeight | None:
        """Returns several weights as one that stays in the blocks in which they are stored.

        None if they are not stored alike in such blocks; then nothing counts as read.

        Args:
            name_format: As `read_stacked` takes it.
            heights: As `read_stacked` takes them.
            width: The second dimension.
        """
        if not self._keeps_blocks:
            return None
        weights: list[BlockWeight] = []
        for part, height in heights.items():
            name = name_format.format(part)
            weight = self._source.read_blocks(name) if name in self._unread else None
            if weight is None or weight.shape != (height, width):
                return None
            weights.append(weight)
        whole = stack(weights)
        if whole is not None:
            for part in heights:
                self._unread.pop(name_format.format(part))
            self._tell()
        return whole

    def blocks_again(self, name: str) -> BlockWeight | None:
        """Returns the same for one tensor that was read already, for a second use."""
        return self._source.read_blocks(name) if self._keeps_blocks else None

    def has(self, name: str) -> bool:
        """Returns whether there is such a tensor, not yet read."""
        return name in self._unread

    def skip(self, name: str) -> None:
        """Passes over a tensor that the model does without, if there is one."""
        self._unread.pop(name, None)

    def finish(self) -> None:
        """Makes sure that no tensor was left over, since it would mean that the model is not what it seems.

        Raises:
            StartupError: naming a tensor that nobody asked for.
        """
        if self._unread:
            names = sorted(self._unread)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise StartupError(
                f"the weights have a tensor {names[0]!r}{more} that {self._source.config.architecture} does not know"
            )

    def _tell(self) -> None:
        done_bytes = self._total_bytes - sum(self._unread.values())
        percent = 100 * done_bytes // max(1, self._total_bytes)
        if percent // 5 > self._told_percent // 5:
            self._told_percent = percent
            self._progress(f"loading weights: {done_bytes / 2**20:.0f} of {self._total_bytes / 2**20:.0f} MiB")


class SafetensorsSource:
    """A folder with config.json and safetensors files, as Transformers saves it."""

    def __init__(self, folder: Path) -> None:
        """Reads the configuration and the files' headers.

        Raises:
            StartupError: a file is missing or malformed.
        """
        self._folder = folder
        generation_path = folder / "generation_config.json"
        generation_config = _read_json(generation_path) if generation_path.exists() else {}
        self._config = parse_config(_read_json(folder / "config.json"), generation_config)
        self._sizes_bytes: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._read_header(path)
        if not self._paths:
            raise StartupError(f"{folder} has no *.safetensors file")

    @property
    def config(self) -> ModelConfig:
        """What the model is made of."""
        return self._config

    @property
    def sizes_bytes(self) -> Mapping[str, int]:
        """Every tensor's name and its size in the file."""
        return self._sizes_bytes

    @property
    def stored_type(self) -> str:
        """The type that takes most of the bytes."""
        return most_used_type((self._types[name], size_bytes) for name, size_bytes in self._sizes_bytes.items())

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor in its stored type."""
        with safe_open(self._paths[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def read_blocks(self, name: str) -> BlockWeight | None:
        """Returns None: these files hold whole tensors."""
        del name
        return None

    def _read_header(self, path: Path) -> None:
        """Learns the tensors of a file: eight bytes say how long the JSON is that says where each one lies."""
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except SafetensorError as error:
            raise StartupError(f"{path}: {error}") from error
        with path.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
        for name in names:
            if name in self._paths:
                raise StartupError(f"{path} and {self._paths[name]} both have a tensor {name!r}")
            start, end = header[name]["data_offsets"]
            self._sizes_bytes[name] = end - start
            self._types[name] = header[name]["dtype"]
            self._paths[name] = path


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StartupError(f"{path} does not exist") from error
    except ValueError as error:
        raise StartupError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise StartupError(f"{path} does not hold a JSON object")
    return content
