"""BLIP-2's files, transformers' and LAVIS's: reading, writing, names, hashes."""
