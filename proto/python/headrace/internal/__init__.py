"""Contracts between parts of headrace that are deployed together."""
