"""Writes docs/settings.md and docs/logs.md from the code that they describe.

A test (`--check`) fails while a page is not up to date.
"""

import argparse
import sys
from pathlib import Path

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from headrace.services.log import EVENT_TEXTS, KEY_TEXTS
from headrace.services.settings import PROCESSES
from headrace.services.settings_loader import aliases_of, flag_of, is_flag_only, variable_of

ROOT = Path(__file__).resolve().parent.parent

SETTINGS_HEAD = """# Settings

<!-- Written by `make fmt` from services/headrace/services/settings.py. -->

Every setting has one name in three places: the flag `--step-row-limit`, the variable `HEADRACE_STEP_ROW_LIMIT` and
the key `step_row_limit` in a TOML file named by `--config` or `HEADRACE_CONFIG`. A flag beats a variable, which beats
the file, which beats the default. A name that no command knows stops the start and is named, with the nearest known
one; so is a value out of range, with where it came from. One environment or file may serve all commands: each takes
what is its own.

Lists are repeated flags, variables with commas, and arrays in the file. Sizes are bytes or have a unit, such as `4GiB`.
Variables that Kubernetes sets for a service named `headrace` are ignored, which is why `--port` has no variable.
"""

LOGS_HEAD = """# Log events

<!-- Written by `make fmt` from services/headrace/services/log.py. -->

A line of the log is one of these events with some of these keys; prompts, completions, tokens and secrets are never
logged. Lines go to standard error, as JSON unless that is a terminal; `--log-format` decides otherwise.
"""


def settings_page() -> str:
    """Returns docs/settings.md."""
    lines = [SETTINGS_HEAD]
    for command, kind in PROCESSES.items():
        lines += [f"## headrace {command}", "", (kind.__doc__ or "").strip(), "", "| flag | default | meaning |"]
        lines += ["|---|---|---|"]
        lines += [_row(name, field) for name, field in kind.model_fields.items()]
        lines += [""]
    return "\n".join(lines)


def logs_page() -> str:
    """Returns docs/logs.md."""
    events = [f"| `{event}` | {text} |" for event, text in EVENT_TEXTS.items()]
    keys = [f"| `{key}` | {text} |" for key, text in KEY_TEXTS.items()]
    head = [LOGS_HEAD, "| event | meaning |", "|---|---|"]
    return "\n".join([*head, *events, "", "## Keys", "", "| key | meaning |", "|---|---|", *keys, ""])


def _row(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    notes = [f"also `--{alias}`" for alias in aliases_of(field)]
    if is_flag_only(field):
        notes.append(f"a flag alone: there is no {variable_of(name)}")
    if notes:
        text += f" ({'; '.join(notes)})"
    return f"| `{flag_of(name)}` | {_default(field)} | {text} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in ("", (), None):
        return ""
    if isinstance(field.default, ByteSize) and field.default:
        return f"`{field.default.human_readable(separator='').replace('.0', '')}`"
    return f"`{'off' if field.default is False else field.default}`"


PAGES = {ROOT / "docs" / "settings.md": settings_page, ROOT / "docs" / "logs.md": logs_page}


def main() -> int:
    """Writes the pages, or says which ones are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the pages")
    choice.add_argument("--check", action="store_true", help="fail if a page is out of date")
    if parser.parse_args().write:
        for path, page in PAGES.items():
            path.write_text(page())
        return 0
    stale = [path for path, page in PAGES.items() if not path.exists() or path.read_text() != page()]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)} is out of date; run make fmt\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
