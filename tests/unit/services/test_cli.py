"""The command finds its subcommands and explains what is missing."""

import subprocess
import sys

import pytest

from headrace.services import cli


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in cli.COMMANDS)
    assert cli.main(["--help"]) == 0


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("headrace ")


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fly"]) == 2
    assert "'fly'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "extra"), [("router", "router"), ("shard", "shard"), ("serve", "router,shard"), ("rest", "rest")]
)
def test_a_missing_extra_is_explained(command: str, extra: str) -> None:
    """As in a base install, where pydantic is not there."""
    script = (
        "import sys; sys.modules['pydantic'] = None\n"
        f"from headrace.services import cli; sys.exit(cli.main([{command!r}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"pip install 'headrace[{extra}]'" in ended.stderr
    assert "pydantic" in ended.stderr


def test_chat_needs_the_base_install_alone() -> None:
    script = (
        "import sys\n"
        "for name in ('pydantic', 'structlog', 'torch', 'tokenizers', 'numpy', 'grpc_health', 'uvloop'):\n"
        "    sys.modules[name] = None\n"
        "from headrace.services import cli\n"
        "sys.exit(cli.main(['chat', '--help']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
