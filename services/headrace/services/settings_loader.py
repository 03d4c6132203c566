"""Reads settings: a flag beats a `HEADRACE_` variable, which beats the TOML file; an unknown name stops the start."""

import argparse
import difflib
import re
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Never, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from headrace.contract.errors import StartupError
from headrace.services.settings import PROCESSES, ProcessSettings

PREFIX = "HEADRACE_"
CONFIG_VARIABLE = "HEADRACE_CONFIG"

_NO_SETTINGS = {CONFIG_VARIABLE, "HEADRACE_KEY"}
"""The second is what the commands of the client show to servers."""

# Kubernetes describes every service to every container. One whose name begins with
# `headrace` must not stop a router, nor may its HEADRACE_PORT ever be taken for a setting.
_KUBERNETES = re.compile(
    r"HEADRACE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)

RETIRED_FLAGS: Mapping[str, str] = {
    "num-shard": "tensor parallel groups are not in this release; --replica-count starts independent copies",
    "sharded": "tensor parallel groups are not in this release; --replica-count starts independent copies",
    "quantize": "the weights run as their files hold them; give a GGUF file",
    "max-concurrent-requests": "set --waiting-request-limit for the queue and --step-row-limit for the batch",
    "max-batch-total-tokens": "the KV cache decides; set --kv-memory or --block-count",
    "waiting-served-ratio": "it has no meaning here: prompts join the running batch in chunks",
    "max-waiting-tokens": "it has no meaning here: prompts join the running batch in chunks",
    "cuda-memory-fraction": "set --kv-memory",
    "disable-custom-kernels": "set --kernels reference",
    "api-key": "set --access-file, with an entry made by `headrace key`",
    "json-output": "set --log-format json",
    "shard-uds-path": "a supervised shard has a private socket; elsewhere set --listen unix:PATH",
    "tokenizer-config-path": "the tokenizer is read from the model's own files",
    "trust-remote-code": "code from a model's repository is never run",
}
"""Flags of Text Generation Inference that have no namesake here, and what to do in place of them."""

Kind = TypeVar("Kind", bound=ProcessSettings)


def load_settings(kind: type[Kind], arguments: Sequence[str], environment: Mapping[str, str], *, program: str) -> Kind:
    """Returns the settings of a process.

    Raises:
        StartupError: a name is unknown, a value is wrong or the file cannot be read; names the source.
        SystemExit: after `--help`.
    """
    flags = _from_flags(kind, arguments, program)
    config = flags.pop("config", environment.get(CONFIG_VARIABLE))
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for found, name_of in (
        (_from_file(kind, config) if config else {}, lambda name: f"{name} in {config}"),
        (_from_environment(kind, environment), variable_of),
        (flags, flag_of),
    ):
        values |= found
        sources |= {name: name_of(name) for name in found}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise StartupError(_explain(error, sources)) from error


def to_flags(settings: ProcessSettings, kind: type[ProcessSettings], **replaced: object) -> list[str]:
    """Returns the flags that give another process the same settings, for the fields that its kind has."""
    flags: list[str] = []
    for name, field in kind.model_fields.items():
        value = replaced[name] if name in replaced else getattr(settings, name, None)
        if value is None or value == field.default:
            # The default is spelled out, too: the other process has the same environment and file.
            value = field.default
        if isinstance(value, bool):
            flags.append(flag_of(name) if value else flag_of(name, is_negated=True))
        elif isinstance(value, tuple):
            flags += [f"{flag_of(name)}={item}" for item in value]
        elif value is not None:
            flags.append(f"{flag_of(name)}={int(value) if isinstance(value, int) else value}")
    return flags


def flag_of(name: str, *, is_negated: bool = False) -> str:
    """Returns the flag of a setting."""
    return f"--{'no-' if is_negated else ''}{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Returns the environment variable of a setting."""
    return PREFIX + name.upper()


def aliases_of(field: FieldInfo) -> list[str]:
    """Returns further names of a setting's flag, without dashes."""
    return list(_extra(field).get("aliases", []))


def is_flag_only(field: FieldInfo) -> bool:
    """Whether a setting has no variable and no key in the file."""
    return bool(_extra(field).get("flag_only", False))


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> Never:
        raise StartupError(f"{message}; see {self.prog} --help")


def _from_flags(kind: type[ProcessSettings], arguments: Sequence[str], program: str) -> dict[str, Any]:
    parser = _Parser(prog=program, description=kind.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if "model" in kind.model_fields:
        parser.add_argument("model_argument", metavar="MODEL", nargs="?", help="the model; the same as --model")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    for name, field in kind.model_fields.items():
        options = [flag_of(name), *(f"--{alias}" for alias in aliases_of(field))]
        parser.add_argument(*options, dest=name, help=_help(field), **_argument(name, field))
    found, rest = parser.parse_known_args(list(arguments))
    for argument in rest:
        _refuse_flag(kind, argument)
    flags = vars(found)
    model = flags.pop("model_argument", None)
    if model is not None and flags.setdefault("model", model) != model:
        raise StartupError(f"two models are given: {model} and {flags['model']}")
    return flags


def _argument(name: str, field: FieldInfo) -> dict[str, Any]:
    """Returns how argparse reads a setting; its value is checked later, like one from any other source."""
    annotation = field.annotation
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is tuple:
        return {"action": "append", "metavar": "ADDRESS" if name == "shard" else "NAME=VALUE"}
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return {"choices": [member.value for member in annotation]}
    types_of = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return {"metavar": "TEXT" if str in types_of else "NUMBER"}


def _help(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("`", "")
    default = "" if field.is_required() or field.default in ("", (), None, False) else f" (default: {field.default})"
    return (text + default).replace("%", "%%")


def _refuse_flag(kind: type[ProcessSettings], argument: str) -> Never:
    name = argument.removeprefix("--").partition("=")[0]
    if argument.startswith("--") and name in RETIRED_FLAGS:
        raise StartupError(f"--{name} is not a setting: {RETIRED_FLAGS[name]}")
    if not argument.startswith("-"):
        raise StartupError(f"unexpected argument {argument!r}")
    known = [flag_of(field).removeprefix("--") for field in kind.model_fields]
    raise StartupError(f"unknown flag {argument.partition('=')[0]}{_suggest(name, known, '--{}')}")


def _from_environment(kind: type[ProcessSettings], environment: Mapping[str, str]) -> dict[str, object]:
    known = {variable_of(name): (name, field) for name, field in _shareable_fields().items()}
    found: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in _NO_SETTINGS:
            continue
        if variable not in known:
            if _KUBERNETES.fullmatch(variable):
                continue
            raise StartupError(f"unknown variable {variable}{_suggest(variable, known, '{}')}")
        name, field = known[variable]
        # A variable for another of our processes is no mistake: containers share them.
        if name in kind.model_fields:
            is_list = get_origin(field.annotation) is tuple
            found[name] = [item for item in text.split(",") if item] if is_list else text
    return found


def _from_file(kind: type[ProcessSettings], path: str) -> dict[str, object]:
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} is not TOML: {error}") from error
    known = _shareable_fields()
    for name in values:
        if name not in known:
            raise StartupError(f"unknown key {name!r} in {path}{_suggest(name, known, '{}')}")
    return {name: value for name, value in values.items() if name in kind.model_fields}


def _shareable_fields() -> dict[str, FieldInfo]:
    """Returns the settings of all processes that may stand in the environment or in a file."""
    return {
        name: field
        for kind in PROCESSES.values()
        for name, field in kind.model_fields.items()
        if not is_flag_only(field)
    }


def _suggest(name: str, known: Iterable[str], form: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {form.format(close[0])}?" if close else ""


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    texts: list[str] = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if problem["type"] == "missing":
            texts.append(f"{flag_of(name)} is missing")
        elif name:
            texts.append(f"{sources.get(name, name)}: {message}, got {problem['input']!r}")
        else:
            texts.append(message)
    return "; ".join(texts)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
