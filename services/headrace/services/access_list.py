"""The keys that callers show and the limits of their tenants, as an operator's file has them."""

import hashlib
import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from headrace.router.tenant_quota import TenantLimits
from headrace.services.caller import Caller, Role

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of keys and tenants. Without a slash, which separates a tenant from what else is written beside it."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _KeyEntry(_Entry):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tenant: Name | None = None
    roles: Annotated[frozenset[Role], Field(min_length=1)] = frozenset({Role.USE})


class _LimitsEntry(_Entry):
    concurrent_request_limit: PositiveInt | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None

    def limits(self) -> TenantLimits:
        return TenantLimits(
            concurrent_request_limit=self.concurrent_request_limit,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


class _File(_Entry):
    keys: dict[Name, _KeyEntry] = Field(default_factory=dict)
    tenants: dict[Name, _LimitsEntry] = Field(default_factory=dict)
    default_tenant: _LimitsEntry = _LimitsEntry()


def hash_key(key: str) -> bytes:
    """Returns what is stored of a key.

    A fast hash is right here: a key is 256 random bits, and no number of guesses
    finds one. Slow hashes are for secrets that people choose.
    """
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessList:
    """Who may call, and how much."""

    limits: Mapping[str, TenantLimits]
    """Of the tenants that have some of their own."""
    default_limits: TenantLimits
    """Of each of the others."""
    callers: Mapping[bytes, tuple[tuple[bytes, Caller], ...]]
    """Hashes of the keys with whom they stand for, by the first bytes of the hash."""

    @classmethod
    def parse(cls, text: str) -> "AccessList":
        """Returns the list that a file says.

        Raises:
            ValueError: it is no TOML, a name is unknown or a value is wrong. The message does not repeat values, since
                one of them may be a key in the wrong place.
        """
        try:
            found = _File.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"it is not TOML: {error}") from None
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            raise ValueError("; ".join(f"{_path(item['loc'])}: {item['msg']}" for item in problems)) from None
        callers: dict[bytes, tuple[tuple[bytes, Caller], ...]] = {}
        for name, entry in found.keys.items():
            digest = bytes.fromhex(entry.sha256)
            caller = Caller(key_name=name, tenant=entry.tenant or name, roles=entry.roles)
            same = callers.get(_index(digest), ())
            if any(other == digest for other, _ in same):
                raise ValueError(f"keys.{name}: another entry has the same hash")
            callers[_index(digest)] = (*same, (digest, caller))
        return cls(
            limits={name: entry.limits() for name, entry in found.tenants.items()},
            default_limits=found.default_tenant.limits(),
            callers=callers,
        )

    def find(self, key: str) -> Caller | None:
        """Returns whom a key stands for; None for an unknown one.

        Hashes are compared in constant time. The look-up by their first bytes
        tells an attacker nothing: a guess cannot be steered towards a hash.
        """
        digest = hash_key(key)
        found: Caller | None = None
        for stored, caller in self.callers.get(_index(digest), ()):
            if hmac.compare_digest(stored, digest):
                found = caller
        return found


def _index(digest: bytes) -> bytes:
    return digest[:4]


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "[key]")
