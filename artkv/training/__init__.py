"""Training under DeepSpeed: a run's wiring, its loop, its step, its engine, its stops."""
