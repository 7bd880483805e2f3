"""Evaluation: data sources, metrics, reports, and benchmarks of speed."""
