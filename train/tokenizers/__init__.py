"""Training of image and text tokenizers."""
