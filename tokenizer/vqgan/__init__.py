"""The VQGAN in taming-transformers' key layout, and perceptual features."""
