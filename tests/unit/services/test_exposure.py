"""What other machines reach is encrypted, unless the operator says otherwise."""

from pathlib import Path

import pytest
from certificates import Authority

from headrace.contract.errors import StartupError
from headrace.services.address import parse_address
from headrace.services.channel_tls import ChannelSecurity, ChannelTlsFiles
from headrace.services.exposure import check_listener, check_shard_listener, check_trace_endpoint
from headrace.services.rest.router_link import RouterLink
from headrace.services.server_tls import ServerTls, ServerTlsFiles
from headrace.services.settings import RestSettings, RouterSettings
from headrace.services.telemetry.tracing import trace_process

LOCAL = ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1", "unix:/run/a.sock"]
REMOTE = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "router:1", "localhost.example.com:1", "[fe80::1]:1"]


def tls_of(folder: Path, *, asks: bool) -> ServerTls:
    authority = Authority(folder)
    pair = authority.issue("server")
    return ServerTls(
        ServerTlsFiles(certificate=pair.certificate, key=pair.key, client_ca=authority.ca if asks else None)
    )


@pytest.mark.parametrize("text", LOCAL)
def test_this_machine_alone_needs_no_encryption(text: str) -> None:
    address = parse_address(text)
    check_listener(address, None, allows_remote_plaintext=False)
    check_shard_listener(address, None, allows_remote_plaintext=False)
    ChannelSecurity().check([address])


@pytest.mark.parametrize("text", REMOTE)
def test_others_need_it(text: str, tmp_path: Path) -> None:
    address = parse_address(text)
    for check in (check_listener, check_shard_listener):
        with pytest.raises(StartupError, match="--insecure"):
            check(address, None, allows_remote_plaintext=False)
        check(address, None, allows_remote_plaintext=True)
        check(address, tls_of(tmp_path, asks=True), allows_remote_plaintext=False)
    with pytest.raises(StartupError, match="--insecure"):
        ChannelSecurity().check([address])
    ChannelSecurity(allows_remote_plaintext=True).check([address])
    ChannelSecurity(tls=ChannelTlsFiles(ca=tmp_path / "ca")).check([address])


@pytest.mark.parametrize("text", REMOTE)
async def test_traces_are_not_sent_to_others_in_plain_text(text: str) -> None:
    with pytest.raises(StartupError, match=r"refusing to send traces to .*--insecure"):
        async with trace_process(RestSettings(otlp_endpoint=f"http://{text}"), default_name="test"):
            pytest.fail("it traces")
    check_trace_endpoint(f"http://{text}", allows_remote_plaintext=True)
    check_trace_endpoint(f"https://{text}", allows_remote_plaintext=False)


@pytest.mark.parametrize("text", ["127.0.0.1:4317", "[::1]:4317", "localhost:4317", "localhost"])
def test_a_collector_on_this_machine_may_get_them(text: str) -> None:
    check_trace_endpoint(f"http://{text}", allows_remote_plaintext=False)


def test_a_shard_must_ask_for_certificates_where_others_reach_it(tmp_path: Path) -> None:
    tls = tls_of(tmp_path, asks=False)
    check_listener(parse_address("0.0.0.0:1"), tls, allows_remote_plaintext=False)
    with pytest.raises(StartupError, match="--tls-client-ca-file"):
        check_shard_listener(parse_address("0.0.0.0:1"), tls, allows_remote_plaintext=False)


def test_the_processes_that_connect_name_their_setting() -> None:
    router = RouterSettings(model="m", shard=("10.0.0.1:1",))
    with pytest.raises(StartupError, match="--shard-tls-ca-file"):
        router.shard_security.check([parse_address("10.0.0.1:1")])
    rest = RestSettings(router_address=("10.0.0.1:1",))
    with pytest.raises(StartupError, match="--router-tls-ca-file"):
        RouterLink(rest.router_address, message_size_limit_bytes=2**20, security=rest.router_security)


def test_files_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    security = ChannelSecurity(tls=ChannelTlsFiles(ca=tmp_path / "absent.pem"))
    with pytest.raises(StartupError, match=r"cannot read .*absent\.pem"):
        security.credentials([parse_address("10.0.0.1:1")])
    with pytest.raises(StartupError, match=r"cannot read .*absent\.pem"):
        RouterLink(["10.0.0.1:1"], message_size_limit_bytes=2**20, security=security)
    assert security.credentials([parse_address("unix:/run/a.sock")]) is None


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"tls_certificate_file": "c"}, "belong together"),
        ({"tls_key_file": "k"}, "belong together"),
        ({"tls_client_ca_file": "a"}, "needs a tls_certificate_file"),
        ({"router_tls_certificate_file": "c", "router_tls_key_file": "k"}, "needs a router_tls_ca_file"),
    ],
)
def test_settings_that_make_no_sense_alone(values: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RestSettings.model_validate(values)
