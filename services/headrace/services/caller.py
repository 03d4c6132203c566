"""Who calls: what a key stands for."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do."""

    USE = "use"
    """Generate, embed, tokenize, and end requests of its own tenant."""
    OPERATE = "operate"
    """See and change replicas, adapters and caches, and end any request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The holder of a key."""

    key_name: str = ""
    """Name of the key; empty where no keys are asked for."""
    tenant: str = ""
    """For whom it calls: limits, cached prefixes and counts are shared within a tenant and with nobody else."""
    roles: frozenset[Role]


ANYBODY = Caller(roles=frozenset(Role))
"""Every caller of a router that asks for no keys: all of them may do everything, as one tenant without a name."""

STRANGER = Caller(roles=frozenset())
"""Who has shown no key where keys are asked for."""
