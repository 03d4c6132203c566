"""Where settings come from, which source wins, and that no mistake passes unnoticed."""

from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.errors import StartupError
from headrace.services.address import TcpAddress, UnixAddress
from headrace.services.settings import PROCESSES, CommonSettings, RouterSettings, ServeSettings, ShardSettings
from headrace.services.settings_loader import RETIRED_FLAGS, flag_of, load_settings, to_flags, variable_of

Kind = TypeVar("Kind", bound=CommonSettings)


def load(kind: type[Kind], *flags: str, **environment: str) -> Kind:
    return load_settings(kind, flags, environment, program="headrace test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text('model = "m"\nblock_size = 8\nstep_row_limit = 11\nengine_option = ["a=1"]\nreplica_count = 4\n')
    return path


def test_a_flag_beats_a_variable_beats_the_file(file: Path) -> None:
    environment = {"HEADRACE_CONFIG": str(file), "HEADRACE_STEP_ROW_LIMIT": "22", "HEADRACE_BLOCK_SIZE": "9"}
    settings = load(ServeSettings, "--step-row-limit=33", **environment)
    assert (settings.step_row_limit, settings.block_size, settings.replica_count) == (33, 9, 4)
    assert settings.engine_option == ("a=1",)
    assert load(ServeSettings, **environment).step_row_limit == 22
    assert load(ServeSettings, f"--config={file}").step_row_limit == 11


def test_settings_cannot_change() -> None:
    settings = load(ServeSettings, "m")
    with pytest.raises(ValueError, match="frozen"):
        settings.block_size = 4  # type: ignore[misc]


def test_the_model_is_the_first_argument_or_a_flag() -> None:
    assert load(ServeSettings, "m").model == "m"
    assert load(ServeSettings, "--model-id", "m").model == "m"
    with pytest.raises(StartupError, match="two models"):
        load(ServeSettings, "m", "--model=n")


def test_text_becomes_numbers_sizes_and_lists() -> None:
    settings = load(ShardSettings, "m", "--kv-memory=4GiB", "--engine-option=a=1", "--engine-option=b=x")
    assert settings.kv_memory == 4 * 2**30
    assert settings.engine_option == ("a=1", "b=x")
    router = load(RouterSettings, "m", HEADRACE_SHARD="127.0.0.1:1,unix:/a.sock", HEADRACE_INSECURE="true")
    assert router.shard == ("127.0.0.1:1", "unix:/a.sock")
    assert router.insecure is True


def test_adapters_by_name() -> None:
    flags = ("--adapter", "poet=/a", "--lora-adapters=clerk=/b,team/x:1=/c=d")
    adapters = {"poet": "/a", "clerk": "/b", "team/x:1": "/c=d"}
    assert load(ServeSettings, "m", *flags).adapters == adapters
    assert load(RouterSettings, "m", "--shard=unix:/s", HEADRACE_ADAPTER="poet=/a").adapters == {"poet": "/a"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("poet", "adapter 'poet' is not NAME=SOURCE"),
        ("poet=", "adapter 'poet=' is not NAME=SOURCE"),
        ("a=/x,a=/y", "two adapters are called 'a'"),
        ("=/x", "must be 1 to 128 letters"),
        ("a b=/x", "must be 1 to 128 letters"),
    ],
)
def test_adapters_of_no_form_are_refused(value: str, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        load(ServeSettings, "m", f"--adapter={value}")


def test_the_address_to_listen_on_has_parts() -> None:
    assert load(ServeSettings, "m", "--port=7").listen_address == TcpAddress("127.0.0.1", 7)
    assert load(ServeSettings, "m", "--hostname=0.0.0.0").listen_address == TcpAddress("0.0.0.0", 50051)
    assert load(ServeSettings, "m", "--listen=unix:/a").listen_address == UnixAddress(Path("/a"))
    with pytest.raises(StartupError, match="no place"):
        load(ServeSettings, "m", "--listen=unix:/a", "--port=7")


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (["--step-row-limits=3"], {}, "unknown flag --step-row-limits; did you mean --step-row-limit?"),
        (["--xyz"], {}, "unknown flag --xyz"),
        (["-x"], {}, "unknown flag -x"),
        (["n"], {}, "unexpected argument 'n'"),
        ([], {"HEADRACE_BLOCKSIZE": "3"}, "unknown variable HEADRACE_BLOCKSIZE; did you mean HEADRACE_BLOCK_SIZE?"),
        (["--block-size=0"], {}, "--block-size: must be greater than 0, got '0'"),
        ([], {"HEADRACE_BLOCK_SIZE": "few"}, "HEADRACE_BLOCK_SIZE: must be a valid integer"),
        (["--listen=nowhere"], {}, "--listen: 'nowhere' is not an address"),
        (["--port=65536"], {}, "--port: must be less than or equal to 65535"),
        (["--engine-option=fast"], {}, "engine option 'fast' is not NAME=VALUE"),
        (["--log-level=loud"], {}, "--log-level"),
        (["--block-size"], {}, "--block-size"),
        (["--block=3"], {}, "unknown flag --block"),
    ],
)
def test_a_mistake_is_named(flags: list[str], environment: dict[str, str], expected: str) -> None:
    with pytest.raises(StartupError) as caught:
        load(ServeSettings, "m", *flags, **environment)
    assert expected in caught.value.message


@pytest.mark.parametrize("flag", RETIRED_FLAGS)
def test_a_flag_of_text_generation_inference_is_answered(flag: str) -> None:
    with pytest.raises(StartupError) as caught:
        load(ServeSettings, "m", f"--{flag}=1")
    assert RETIRED_FLAGS[flag] in caught.value.message


def test_flags_that_are_answered_are_no_settings() -> None:
    flags = {flag_of(name).removeprefix("--") for kind in PROCESSES.values() for name in kind.model_fields}
    assert not flags & set(RETIRED_FLAGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocksize = 3", "unknown key 'blocksize'"),
        ("port = 3", "unknown key 'port'"),
        ("[router]\nmodel = 'm'", "unknown key 'router'"),
        ("block_size =", "is not TOML"),
        ("block_size = 0", "block_size in"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(StartupError) as caught:
        load(ServeSettings, "m", f"--config={path}")
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"none\.toml: No such file"):
        load(ServeSettings, "m", f"--config={tmp_path}/none.toml")


def test_settings_of_another_process_are_no_mistake(file: Path) -> None:
    settings = load(ShardSettings, HEADRACE_CONFIG=str(file), HEADRACE_WAITING_REQUEST_LIMIT="3")
    assert settings.block_size == 8


def test_what_kubernetes_tells_of_services_is_ignored() -> None:
    described = {
        "HEADRACE_PORT": "tcp://10.0.0.1:50051",
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_ROUTER_SERVICE_PORT_GRPC": "50051",
        "HEADRACE_ROUTER_PORT_50051_TCP_ADDR": "10.0.0.1",
        "HOSTNAME": "pod-1",
        "PORT": "99",
    }
    assert load(ServeSettings, "m", **described).listen_address == TcpAddress("127.0.0.1", 50051)


@pytest.mark.parametrize("kind", PROCESSES.values())
def test_every_setting_is_explained(kind: type[CommonSettings]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        if name.endswith("_s"):
            assert "in seconds" in field.description, name


@pytest.mark.parametrize("command", PROCESSES)
def test_help_lists_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = PROCESSES[command]
    with pytest.raises(SystemExit) as caught:
        load(kind, "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(flag_of(name) in text for name in kind.model_fields)


@given(
    st.builds(
        ServeSettings,
        model=st.just("m"),
        block_size=st.integers(1, 99),
        step_row_limit=st.integers(1, 999),
        insecure=st.booleans(),
        engine=st.sampled_from(["native", "fake"]),
        engine_option=st.lists(st.sampled_from(["a=1", "b=-x", "c= d"]), max_size=2).map(tuple),
        kv_memory=st.integers(0, 2**40),
    )
)
def test_a_child_gets_the_same_settings_whatever_its_environment(settings: ServeSettings) -> None:
    flags = to_flags(settings, ShardSettings, listen="unix:/a.sock", exit_with_parent=True)
    environment = {variable_of("block_size"): "7", variable_of("insecure"): "true", variable_of("kv_memory"): "9"}
    child = load(ShardSettings, *flags, **environment)
    inherited = set(ShardSettings.model_fields) - {"listen", "exit_with_parent"}
    assert {name: getattr(child, name) for name in inherited} == {name: getattr(settings, name) for name in inherited}
    assert (child.listen, child.exit_with_parent) == ("unix:/a.sock", True)
