"""Keys and roles: every method has a rule, keys are known by their hashes alone, and the file may change."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace.contract.errors import Forbidden, StartupError, Unauthenticated
from headrace.router.tenant_quota import UNLIMITED, TenantLimits
from headrace.services import key_command
from headrace.services.access_list import AccessList, hash_key
from headrace.services.access_rules import ACCEPTED_ROLES, OPEN, check_access
from headrace.services.caller import ANYBODY, STRANGER, Caller, Role
from headrace.services.gatekeeper import Gatekeeper
from headrace.v1 import embedding_service_pb2, generate_service_pb2, health_service_pb2, router_service_pb2

GENERATE = "/headrace.v1.GenerateService/Generate"
FLUSH = "/headrace.v1.RouterService/FlushPrefixCache"
HEALTH = "/grpc.health.v1.Health/Check"


class SetClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s


def services() -> Iterator[ServiceDescriptor]:
    files = (embedding_service_pb2, generate_service_pb2, health_service_pb2, router_service_pb2)
    for module in (*files, health_pb2, reflection_pb2):
        yield from module.DESCRIPTOR.services_by_name.values()


@pytest.fixture(autouse=True)
def log_context() -> Iterator[None]:
    """Forgets who called: each call of a server has a context of its own, and tests share one."""
    yield
    structlog.contextvars.clear_contextvars()


def test_every_method_has_a_rule_and_no_rule_is_for_nothing() -> None:
    methods = {f"/{service.full_name}/{method.name}" for service in services() for method in service.methods}
    assert set(ACCEPTED_ROLES) == methods


def test_no_service_of_the_contract_is_forgotten() -> None:
    folder = Path(__file__).parents[3] / "proto" / "headrace" / "v1"
    names = {
        f"headrace.v1.{line.split()[1]}"
        for path in folder.glob("*.proto")
        for line in path.read_text().splitlines()
        if line.startswith("service ")
    }
    assert names <= {service.full_name for service in services()}
    for name in names:
        descriptor_pool.Default().FindServiceByName(name)


def test_what_is_open_without_a_key() -> None:
    assert {method for method, roles in ACCEPTED_ROLES.items() if roles == OPEN} == {
        # Each of its generations shows a key, as if it came by itself.
        "/headrace.v1.GenerateService/GenerateMultiplexed",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }


@pytest.mark.parametrize("method", ACCEPTED_ROLES)
def test_a_role_opens_what_it_is_for_and_nothing_else(method: str) -> None:
    for role in Role:
        caller = Caller(key_name="k", tenant="t", roles=frozenset({role}))
        if ACCEPTED_ROLES[method] == OPEN or role in ACCEPTED_ROLES[method]:
            check_access(method, caller)
        else:
            with pytest.raises(Forbidden, match=r"'k' may not"):
                check_access(method, caller)
    check_access(method, ANYBODY)
    if ACCEPTED_ROLES[method] != OPEN:
        with pytest.raises(Unauthenticated):
            check_access(method, STRANGER)


def test_a_method_without_a_rule_is_closed() -> None:
    with pytest.raises(Forbidden):
        check_access("/headrace.v1.RouterService/New", ANYBODY)


def entry(name: str, key: str, rest: str = "") -> str:
    return f'[keys.{name}]\nsha256 = "{hash_key(key).hex()}"\n{rest}\n'


def test_a_list_of_keys_and_tenants() -> None:
    access = AccessList.parse(
        entry("alice", "key a")
        + entry("bob", "key b", 'tenant = "team"\nroles = ["use", "operate"]')
        + "[tenants.team]\ntokens_per_minute = 7\n[default_tenant]\nconcurrent_request_limit = 2\n"
    )
    assert access.find("key a") == Caller(key_name="alice", tenant="alice", roles=frozenset({Role.USE}))
    assert access.find("key b") == Caller(key_name="bob", tenant="team", roles=frozenset(Role))
    assert access.find("key c") is access.find("") is None
    assert access.limits == {"team": TenantLimits(tokens_per_minute=7)}
    assert access.default_limits == TenantLimits(concurrent_request_limit=2)
    assert AccessList.parse("").default_limits == UNLIMITED


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("keys = 3", "keys"),
        ("[key.a]", "key: Extra inputs"),
        ('[keys.a]\nsha256 = "hr_secret"', r"keys\.a\.sha256"),
        (entry("a", "k", 'roles = ["admin"]'), r"keys\.a\.roles"),
        (entry("a", "k", "roles = []"), r"keys\.a\.roles"),
        (entry("a", "k", 'tenant = "a/b"'), r"keys\.a\.tenant"),
        (entry("a", "k") + entry("b", "k"), "same hash"),
        ("[tenants.a]\ntokens_per_minute = 0", r"tenants\.a\.tokens_per_minute"),
        ("[keys.a", "not TOML"),
    ],
)
def test_a_wrong_list_is_explained_without_its_values(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        AccessList.parse(text)
    assert "secret" not in str(caught.value)


def bearer(value: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", value)]


def test_who_calls_is_told_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(entry("alice", "secret"))
    keeper = Gatekeeper(path, SetClock())
    assert keeper.admit(GENERATE, bearer("Bearer secret")).tenant == "alice"
    assert keeper.admit(GENERATE, bearer("bearer  secret ")).tenant == "alice"
    assert keeper.admit(HEALTH, []) == STRANGER
    for metadata in ([], bearer("secret"), bearer("Basic secret"), bearer("Bearer wrong"), bearer("Bearer "),
                     bearer("Bearer secret") * 2):  # fmt: skip
        with pytest.raises(Unauthenticated) as caught:
            keeper.admit(GENERATE, metadata)
        assert "secret" not in caught.value.message
        assert "wrong" not in caught.value.message
    with pytest.raises(Forbidden):
        keeper.admit(FLUSH, bearer("Bearer secret"))


def test_the_file_may_change_at_any_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "access.toml", SetClock()
    path.write_text(entry("alice", "old"))
    keeper = Gatekeeper(path, clock)
    seen: list[AccessList] = []
    keeper.follow(seen.append)
    path.write_text(entry("alice", "new") + "[tenants.alice]\ntokens_per_minute = 5\n")
    clock.now_s += 1.0
    assert keeper.admit(GENERATE, bearer("Bearer new")).key_name == "alice"
    with pytest.raises(Unauthenticated):
        keeper.admit(GENERATE, bearer("Bearer old"))
    assert [access.limits for access in seen] == [{}, {"alice": TenantLimits(tokens_per_minute=5)}]
    for wrong in ("[keys", None):
        if wrong is None:
            path.unlink()
        else:
            path.write_text(wrong)
        clock.now_s += 1.0
        assert keeper.admit(GENERATE, bearer("Bearer new")).key_name == "alice"
    path.write_text("")
    clock.now_s += 1.0
    with pytest.raises(Unauthenticated):
        keeper.admit(GENERATE, bearer("Bearer new"))


def test_a_wrong_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    with pytest.raises(StartupError, match="No such file"):
        Gatekeeper(path, SetClock())
    path.write_text("[tokens]")
    with pytest.raises(StartupError, match="tokens"):
        Gatekeeper(path, SetClock())


def test_a_key_is_made_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "alice.key"
    assert key_command.main(["alice", "--tenant=search", "--role=use", "--role=operate", f"--out={out}"]) == 0
    printed = capsys.readouterr()
    key = out.read_text().strip()
    assert (out.stat().st_mode & 0o777, printed.err) == (0o600, "")
    assert key not in printed.out
    assert AccessList.parse(printed.out).find(key) == Caller(key_name="alice", tenant="search", roles=frozenset(Role))
    assert key_command.main(["bob", f"--out={out}"]) == 2
    assert out.read_text().strip() == key
    assert key_command.main(["bob"]) == 0
    printed = capsys.readouterr()
    other = printed.err.splitlines()[-1]
    assert tomllib.loads(printed.out)["keys"]["bob"]["sha256"] == hash_key(other).hex()
    assert len({key, other, *(key_command.new_key() for _ in range(100))}) == 102
    with pytest.raises(SystemExit):
        key_command.main(["a/b"])
