"""A PEFT folder's files, and the digest that names them by their content."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from headrace.contract.adapter import AdapterOrder
from headrace.contract.errors import InvalidRequest

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """The content of both files. What is named by the digest is what is used, even if a file changes meanwhile."""

    config: bytes
    weights: bytes
    digest: str


def read_adapter_files(order: AdapterOrder) -> AdapterFiles:
    """Returns the files of an adapter.

    Raises:
        InvalidRequest: one is missing, or they are not what the order says.
    """
    folder = Path(order.source)
    config, weights = _read(folder / CONFIG_NAME), _read(folder / WEIGHTS_NAME)
    digest = blake2b(len(config).to_bytes(8, "little") + config, digest_size=16)
    digest.update(weights)
    if order.digest and digest.hexdigest() != order.digest:
        raise InvalidRequest.of("source", f"{folder} holds another adapter than when it was loaded first")
    return AdapterFiles(config=config, weights=weights, digest=digest.hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest.of("source", f"the model server cannot read {path}: {error.strerror}") from error
