"""The edges: gRPC servers and channels, settings, telemetry and start-up. The only composition root."""
