"""Training of the art encoder: an EfficientNet on WikiArt's styles."""
