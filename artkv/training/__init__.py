"""Training under DeepSpeed: engine, step, loop, checkpoints."""

import artkv.distributed  # noqa: F401  (tells DeepSpeed its accelerator, before anything here imports it)
