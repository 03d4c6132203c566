"""Guessing tokens ahead of the model, so that one forward pass can bring several."""
