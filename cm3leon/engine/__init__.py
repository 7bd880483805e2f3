"""Continuous batching: requests, prefill and batched decoding, one token per step."""
