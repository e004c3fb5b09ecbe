"""What a run will need and what would stop it, known before it starts."""
