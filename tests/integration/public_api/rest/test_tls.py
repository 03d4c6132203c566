"""TLS with certificates on both ends of every hop: caller, sidecar, router, shard."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair, shown_serial_number

from headrace.client import AsyncClient, ServerUnreachable, Tls
from headrace.services.channel_tls import ChannelSecurity, ChannelTlsFiles
from headrace.services.server_tls import ServerTls, ServerTlsFiles
from headrace.shard.engines.fake import FakeOptions


def server_tls(pair: Pair, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(ServerTlsFiles(certificate=pair.certificate, key=pair.key, client_ca=client_ca))


def security(ca: Path, pair: Pair) -> ChannelSecurity:
    return ChannelSecurity(tls=ChannelTlsFiles(ca=ca, certificate=pair.certificate, key=pair.key))


async def test_every_hop_with_certificates_on_both_ends(deploy_rest: Callable[..., Any], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    router, sidecar, shard, client = (authority.issue(name) for name in ("router", "sidecar", "shard", "client"))
    trust = trust_of(authority.ca, client)
    async with deploy_rest(
        tls=server_tls(router, authority.ca),
        credentials=grpc.ssl_channel_credentials(
            authority.ca.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
        ),
        shard_tls=server_tls(shard, authority.ca),
        shard_security=security(authority.ca, router),
        security=security(authority.ca, sidecar),
        sidecar_tls=server_tls(sidecar, authority.ca),
        trust=trust,
    ) as rest:
        body = {"model": "test-model", "prompt": "hello", "max_tokens": 4}
        answer = await rest.post("/v1/completions", **body)
        assert answer.status_code == 200, answer.text
        shown = {"certificate_file": client.certificate, "key_file": client.key}
        target = rest.router.address
        async with AsyncClient(target, tls=Tls(ca_file=authority.ca, **shown), deadline_s=10) as known:
            assert (await known.generate("hello", max_new_token_count=4)).text
        stranger = AsyncClient(target, tls=Tls(ca_file=authority.ca), deadline_s=10, channel_options=_NO_RETRIES)
        async with stranger:
            with pytest.raises(ServerUnreachable):
                await stranger.generate("hello")

        # A new certificate of the sidecar for its callers, and of the sidecar as a client of the router.
        address = rest.base_url.removeprefix("https://")
        renewed = authority.issue("sidecar")
        async with AsyncClient(target, tls=Tls(ca_file=authority.ca, server_name="localhost", **shown)) as named:
            assert await named.list_models()
        assert (await rest.post("/v1/completions", **body)).status_code == 200
        assert await shown_serial_number(address, trust) == renewed.serial_number


async def test_a_stream_survives_new_certificates_on_every_hop(deploy_rest: Callable[..., Any], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    router, sidecar, shard = (authority.issue(name) for name in ("router", "sidecar", "shard"))
    async with deploy_rest(
        engine=FakeOptions(step_time_s=0.005),
        tls=server_tls(router, authority.ca),
        credentials=grpc.ssl_channel_credentials(
            authority.ca.read_bytes(), sidecar.key.read_bytes(), sidecar.certificate.read_bytes()
        ),
        shard_tls=server_tls(shard, authority.ca),
        shard_security=security(authority.ca, router),
        security=security(authority.ca, sidecar),
        sidecar_tls=server_tls(sidecar, None),
        trust=ssl.create_default_context(cafile=authority.ca),
    ) as rest:
        body = {"model": "test-model", "prompt": "hello", "max_tokens": 100, "ignore_eos": True, "stream": True}
        async with rest.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            renewed = {name: authority.issue(name).serial_number for name in ("router", "sidecar", "shard")}
            # What begins now is shown the new certificates, from the caller to the shard.
            assert (await rest.post("/v1/completions", model="test-model", prompt="hi", max_tokens=2)).is_success
            trust = trust_of(authority.ca, sidecar)
            [[shard_address]] = [status.addresses for status in rest.router.app.replicas.statuses()]
            at = {
                "router": rest.router.address,
                "sidecar": rest.base_url.removeprefix("https://"),
                "shard": shard_address,
            }
            shown = {name: await shown_serial_number(address, trust) for name, address in at.items()}
            rest_of_it = [line async for line in lines]
    assert shown == renewed
    assert first.startswith("data: ")
    assert rest_of_it[-2] == "data: [DONE]"


def trust_of(ca: Path, pair: Pair) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=ca)
    trust.load_cert_chain(pair.certificate, pair.key)
    return trust


_NO_RETRIES = (("grpc.enable_retries", 0),)
