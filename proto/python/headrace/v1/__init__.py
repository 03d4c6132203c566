"""The public gRPC contract: generated messages and stubs."""
