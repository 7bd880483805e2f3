"""Networks that judge images: Inception, LPIPS, MobileNetV2, a classifier."""
