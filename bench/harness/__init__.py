"""Measures headrace and its peers side by side."""
