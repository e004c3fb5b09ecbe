"""The names that a run's curves and pictures have in TensorBoard and in other trackers.

TensorBoard's first page shows groups of tags in the order of the alphabet, so the groups' names put what is learnt
first, then what the machine did (`vitals`), then pictures (`works`).
"""

# What tells of the machine and not of the model.
_VITALS = {
    "questions_per_second", "paintings_per_second", "step_seconds", "step_seconds_max", "data_wait_share",
    "own_step_seconds", "own_step_seconds_max", "slowest_rank", "skipped_steps",
    "pictures_per_second", "peak_host_gib", "peak_device_gib",
}  # fmt: skip
# Metrics whose names begin so are a group of their own.
_GROUPS = ("attention", "grad_norm", "update_to_weight")


def tag_of(kind: str, name: str) -> str:
    """The tag of a metric of metrics.jsonl; kind: train or validation."""
    if name in _VITALS:
        return f"vitals/{name}"
    group, slash, _ = name.partition("/")
    return name if slash and group in _GROUPS else f"{kind}/{name}"
