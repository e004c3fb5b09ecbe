"""BLIP-2's modules on either backend."""
