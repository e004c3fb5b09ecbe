"""Frozen weights: how they are held and recomputed while training."""
