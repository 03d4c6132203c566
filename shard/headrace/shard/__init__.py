"""The data plane, free of transport: runs the steps of a model."""
