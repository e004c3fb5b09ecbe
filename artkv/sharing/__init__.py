"""Trained models on the hub: pushed with their evidence, and opened by their ids."""
