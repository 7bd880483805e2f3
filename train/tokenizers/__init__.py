"""Training of image tokenizers and text tokenizers."""
