"""Fast decoding paths, each with the same results as the plain decoder."""
