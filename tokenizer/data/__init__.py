"""Images and documents on disk: tars, published datasets, token shards."""
