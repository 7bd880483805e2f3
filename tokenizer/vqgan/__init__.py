"""VQGAN with taming-transformers' parameter names, and perceptual features."""
