"""Training of the art encoder: a network of timm on WikiArt's styles, or on genres and artists too."""
