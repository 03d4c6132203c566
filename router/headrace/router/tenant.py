"""Whose a request is, as far as what is measured tells requests apart."""

from typing import Final

from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.generation import GenerationRequest

TENANT_LIMIT: Final = 100
"""Tenants that are told apart: each costs some series in whatever stores the metrics."""
OTHER_TENANTS: Final = "other"


def tenant_of(request: GenerationRequest | EmbeddingRequest) -> str:
    """Returns the tenant of a request. Callers have no names here, so all of them are one tenant, with an empty one."""
    del request
    return ""


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
