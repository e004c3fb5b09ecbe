"""Answers generated for a split, their scores, and the ablations of prefix and picture."""
