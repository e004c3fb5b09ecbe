"""Trains and compares the runs of a grid or list of settings."""
