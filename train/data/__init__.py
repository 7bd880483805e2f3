"""Data pipeline of training: from tars to token shards, and from shards to batches of rows."""
