"""The command finds its subcommands and explains what is missing."""

import os
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


@pytest.mark.parametrize(
    ("given", "in_force"), [(None, cli.GRPC_SWITCHES), ("-event_engine_client", "-event_engine_client")]
)
def test_a_server_sets_switches_that_this_grpc_knows(given: str | None, in_force: str) -> None:
    """A release of gRPC without them would say so on standard error."""
    script = (
        "import os\n"
        "from headrace.services import cli\n"
        "cli.COMMANDS['shard'] = cli.Command('builtins:len', '', '')\n"
        "cli.main(['shard'])\n"
        "import grpc\n"
        "grpc.insecure_channel('127.0.0.1:1').close()\n"
        "print(os.environ['GRPC_EXPERIMENTS'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    if given is not None:
        environment["GRPC_EXPERIMENTS"] = given
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout == f"{in_force}\n"
    assert ended.stderr == ""


def test_a_client_keeps_the_defaults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert capsys.readouterr().out.startswith("usage")
    assert "GRPC_EXPERIMENTS" not in os.environ
