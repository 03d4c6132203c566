"""The control plane, free of transport: admission, scheduling, KV accounting and text."""
