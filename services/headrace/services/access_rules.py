"""Which role each method of the router needs: the one table."""

from collections.abc import Mapping

from headrace.contract.errors import Forbidden, Unauthenticated
from headrace.services.caller import Caller, Role

OPEN: frozenset[Role] = frozenset()
"""Needs no key."""

_USE = frozenset({Role.USE})
_OPERATE = frozenset({Role.OPERATE})
_EITHER = frozenset(Role)

ACCEPTED_ROLES: Mapping[str, frozenset[Role]] = {
    "/headrace.v1.GenerateService/Generate": _USE,
    "/headrace.v1.GenerateService/GenerateStream": _USE,
    # Each of its generations shows a key of its own.
    "/headrace.v1.GenerateService/GenerateMultiplexed": OPEN,
    "/headrace.v1.GenerateService/Tokenize": _USE,
    "/headrace.v1.GenerateService/Detokenize": _USE,
    "/headrace.v1.EmbeddingService/Embed": _USE,
    "/headrace.v1.RouterService/ListModels": _EITHER,
    "/headrace.v1.RouterService/GetModel": _EITHER,
    "/headrace.v1.RouterService/ListAdapters": _EITHER,
    # Who may only use ends what is its tenant's own; see RouterServicer.
    "/headrace.v1.RouterService/Abort": _EITHER,
    "/headrace.v1.RouterService/ListReplicas": _OPERATE,
    "/headrace.v1.RouterService/AddReplica": _OPERATE,
    "/headrace.v1.RouterService/DrainReplica": _OPERATE,
    "/headrace.v1.RouterService/RemoveReplica": _OPERATE,
    "/headrace.v1.RouterService/GetLoad": _OPERATE,
    "/headrace.v1.RouterService/WatchLoad": _OPERATE,
    "/headrace.v1.RouterService/LoadAdapter": _OPERATE,
    "/headrace.v1.RouterService/UnloadAdapter": _OPERATE,
    "/headrace.v1.RouterService/FlushPrefixCache": _OPERATE,
    # They tell the addresses of replicas, and make them work.
    "/headrace.v1.HealthService/GetHealth": _OPERATE,
    "/headrace.v1.HealthService/Probe": _OPERATE,
    # A kubelet has no key, and one bit is all it learns.
    "/grpc.health.v1.Health/Check": OPEN,
    "/grpc.health.v1.Health/List": OPEN,
    "/grpc.health.v1.Health/Watch": OPEN,
    # What it tells is published with the sources.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OPEN,
}
"""Methods and the roles of which a caller needs one. A method that is not listed is closed to everybody."""


def check_access(method: str, caller: Caller) -> None:
    """Checks that a caller may use a method, given by its full name.

    Raises:
        Unauthenticated: it needs a key, and the caller has shown none.
        Forbidden: no role of the caller opens it.
    """
    accepted = ACCEPTED_ROLES.get(method)
    if accepted == OPEN or (accepted is not None and accepted & caller.roles):
        return
    if not caller.roles:
        raise Unauthenticated("a key is needed: send the metadata `authorization: Bearer KEY`")
    needed = " or ".join(sorted(accepted)) if accepted else "no role"
    raise Forbidden(
        f"the key {caller.key_name!r} may not do this; it needs the role: {needed}",
        metadata={"key": caller.key_name, "needed_role": needed},
    )
