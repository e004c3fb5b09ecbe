"""A page in a browser that asks a trained model: the answers with the prefix and without it."""
