"""Training of the retriever's encoder."""
