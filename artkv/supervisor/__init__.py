"""Keeps a training going inside its allocation: notices that it died or hangs, ends what is left, starts it again."""
