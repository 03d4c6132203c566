"""The gRPC service config that headrace's clients run with, for clients in every language to copy.

It tells the channel when to try a call again by itself. gRPC does so only until
the server has answered with headers, and a headrace server sends none before it
has admitted a request: so nothing that ran is ever repeated. A server that is
full says when to come back (`grpc-retry-pushback-ms`), and the channel obeys.
"""

import json

_GENERATE_SERVICE = "headrace.v1.GenerateService"
_EMBEDDING_SERVICE = "headrace.v1.EmbeddingService"
_ROUTER_SERVICE = "headrace.v1.RouterService"
_HEALTH_SERVICE = "headrace.v1.HealthService"

_REPEATABLE_OPERATIONS = (
    "ListModels",
    "GetModel",
    "ListReplicas",
    "DrainReplica",
    "GetLoad",
    "WatchLoad",
    "Abort",
    "ListAdapters",
    "FlushPrefixCache",
)
"""The operations that may be sent twice: when a connection breaks, nobody knows whether the first one arrived."""

ATTEMPT_LIMIT = 5
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 2.0
BACKOFF_FACTOR = 2
RETRYABLE_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""DEADLINE_EXCEEDED is not among them: the time of the caller is over."""

SERVICE_CONFIG: dict[str, object] = {
    "methodConfig": [
        {
            "name": [
                {"service": _GENERATE_SERVICE},
                {"service": _EMBEDDING_SERVICE},
                {"service": _HEALTH_SERVICE},
                *({"service": _ROUTER_SERVICE, "method": method} for method in _REPEATABLE_OPERATIONS),
            ],
            "retryPolicy": {
                "maxAttempts": ATTEMPT_LIMIT,
                "initialBackoff": f"{FIRST_BACKOFF_S:g}s",
                "maxBackoff": f"{LONGEST_BACKOFF_S:g}s",
                "backoffMultiplier": BACKOFF_FACTOR,
                "retryableStatusCodes": list(RETRYABLE_CODES),
            },
        }
    ],
    # Each failure takes one token and each success returns one; retries rest while fewer than half are left.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 1},
    # Read by round_robin alone: calls go only to servers whose grpc.health.v1 says SERVING.
    "healthCheckConfig": {"serviceName": _GENERATE_SERVICE},
}
"""The service config. Add `{"loadBalancingConfig": [{"round_robin": {}}]}` to spread calls over several servers."""

SERVICE_CONFIG_JSON = json.dumps(SERVICE_CONFIG, indent=2)
"""The same as JSON, as the channel option `grpc.service_config` takes it; also `clients/service_config.json`."""

ROUND_ROBIN_SERVICE_CONFIG_JSON = json.dumps(SERVICE_CONFIG | {"loadBalancingConfig": [{"round_robin": {}}]}, indent=2)
"""`SERVICE_CONFIG_JSON` for several servers: calls take turns among those that are serving."""
