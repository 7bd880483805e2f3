"""Images and documents on disk: tars, published data sets, token shards."""
