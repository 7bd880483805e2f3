"""Training of the retriever's dual encoder."""
