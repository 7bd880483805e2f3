"""Evaluation networks (Inception, LPIPS, a concept classifier) and distances of their features."""
