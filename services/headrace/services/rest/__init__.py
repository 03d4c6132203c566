"""The REST sidecar: HTTP in the protocols of OpenAI, Text Generation Inference and Anthropic, over a router's gRPC."""
