"""Metrics: one file each, from an evaluation context to a result."""
