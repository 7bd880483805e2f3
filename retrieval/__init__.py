"""Retrieval for prompts: embed documents, index them, search them and return documents."""
