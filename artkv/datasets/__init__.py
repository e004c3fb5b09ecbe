"""ArtQuest CSV files and pictures: checking, decoding, tokenising, ordering, loading."""
