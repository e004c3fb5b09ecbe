"""A run's folder: checkpoints, lock, status, the marker of a preempted run. Nothing here needs DeepSpeed."""
