"""BLIP-2 backends, the art encoder, and the model assembled from them."""
