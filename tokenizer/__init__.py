"""Conversion of text and images to token ids and back; all other packages depend on it."""
