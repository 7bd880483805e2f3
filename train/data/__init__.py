"""Training rows: from tars to token shards, and from shards to rows of a step."""
