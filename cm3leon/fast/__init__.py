"""Fast paths of decoding, each with the results of the plain path."""
