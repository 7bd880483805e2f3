"""Continuous batching: requests, prefill, and one token at a time for all of them."""
