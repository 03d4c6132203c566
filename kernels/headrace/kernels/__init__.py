"""Operators: a plain-torch reference of each, and fast versions per device."""
