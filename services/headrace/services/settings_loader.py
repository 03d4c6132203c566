"""Reads settings: flags before environment before file, and no unknown name passes."""

import argparse
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from headrace.contract.errors import StartupError
from headrace.services.settings import COMMANDS, CommonSettings

ENVIRONMENT_PREFIX = "HEADRACE_"

Settings = TypeVar("Settings", bound=CommonSettings)


def load_settings(
    command: str,
    kind: type[Settings],
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Returns the settings of a command. `--help` prints them and exits.

    Environment and file may hold settings of the other commands too, so that
    one of each serves a whole deployment.

    Raises:
        StartupError: a name is unknown, a value is wrong or one is missing; the message says where.
    """
    flags = vars(build_parser(command, kind).parse_args(arguments))
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    variables = _from_environment(kind, environment)
    path = given.get("config") or variables.get("config")
    file = _from_file(kind, Path(str(path))) if path else {}
    try:
        return kind.model_validate({**file, **variables, **given})
    except ValidationError as error:
        raise StartupError(_explain(error, given, variables)) from None


def build_parser(command: str, kind: type[CommonSettings]) -> argparse.ArgumentParser:
    """Returns the parser of a command's flags."""
    parser = argparse.ArgumentParser(
        prog=f"headrace {command}",
        description=f"Settings come from flags, then {ENVIRONMENT_PREFIX}* variables, then the file of --config.",
        allow_abbrev=False,
    )
    for name, field in kind.model_fields.items():
        extra = _extra(field)
        flags = [f"--{name.replace('_', '-')}"]
        if "tgi" in extra:
            flags.append(f"--{extra['tgi']}")
        text = f"{field.description} {_default_text(field)}".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif is_list(field):
            parser.add_argument(*flags, dest=name, action="append", default=[], metavar="VALUE", help=text)
        else:
            parser.add_argument(*flags, dest=name, default=None, metavar="VALUE", help=text)
        if extra.get("positional"):
            # A default would overwrite what the flag of the same name has set.
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar=name.upper(), help=text)
    return parser


def is_list(field: FieldInfo) -> bool:
    """Whether a setting takes several values."""
    return get_origin(field.annotation) is tuple


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "Required."
    if field.default is None or is_list(field) or isinstance(field.default, bool):
        return ""
    return f"Default: {field.default}."


def _known_names() -> set[str]:
    return {name for kind in COMMANDS.values() for name in kind.model_fields}


def _check_known(names: Sequence[str], where: str, spell: str) -> None:
    known = _known_names()
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {_spelled(close[0], spell)}?" if close else ""
        raise StartupError(f"unknown setting {_spelled(name, spell)} in {where}{hint}")


def _spelled(name: str, spell: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper() if spell == "variable" else name


def _from_environment(kind: type[CommonSettings], environment: Mapping[str, str]) -> dict[str, object]:
    values = {
        variable.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for variable, value in environment.items()
        if variable.startswith(ENVIRONMENT_PREFIX)
    }
    _check_known(list(values), "the environment", "variable")
    return {
        name: value.split(",") if is_list(kind.model_fields[name]) else value
        for name, value in values.items()
        if name in kind.model_fields
    }


def _from_file(kind: type[CommonSettings], path: Path) -> dict[str, object]:
    try:
        values = cast("dict[str, object]", tomllib.loads(path.read_text()))
    except OSError as error:
        raise StartupError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"the settings file {path} is not TOML: {error}") from error
    _check_known(list(values), str(path), "key")
    return {name: value for name, value in values.items() if name in kind.model_fields}


def _explain(error: ValidationError, flags: Mapping[str, object], variables: Mapping[str, object]) -> str:
    """Says, for each wrong setting, where it was set and what is wrong."""
    problems: list[str] = []
    for entry in error.errors():
        name = str(entry["loc"][0])
        if entry["type"] == "missing":
            problems.append(f"{name} is required: give --{name.replace('_', '-')}")
        else:
            place = f"--{name.replace('_', '-')}" if name in flags else name
            place = _spelled(name, "variable") if name in variables and name not in flags else place
            problems.append(f"{place}: {entry['msg']}, got {str(entry['input'])[:80]!r}")
    return "; ".join(problems)
