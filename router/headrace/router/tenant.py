"""Whose a request is: what that keeps apart in the prefix cache and in what is measured."""

from typing import Final

from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.generation import GenerationRequest

TENANT_LIMIT: Final = 100
"""Tenants that are told apart: each costs some series in whatever stores the metrics."""
OTHER_TENANTS: Final = "other"


def private_salt(request: GenerationRequest | EmbeddingRequest) -> str:
    """Returns what keeps the cached prefixes of tenants apart, and within a tenant those of its own salts."""
    return f"{request.tenant}/{request.cache_salt}" if request.tenant else request.cache_salt


class TenantNames:
    """Tells the first tenants apart and takes the others together, so that callers cannot make metrics without end."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def bounded(self, tenant: str) -> str:
        """Returns the name to count a tenant under."""
        if tenant not in self._known:
            if len(self._known) >= TENANT_LIMIT:
                return OTHER_TENANTS
            self._known.add(tenant)
        return tenant
