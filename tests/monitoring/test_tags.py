"""Which tag a metric has."""

from artkv.monitoring.tags import tag_of


def test_groups_of_tags() -> None:
    assert tag_of("train", "loss") == "train/loss"
    assert tag_of("train", "grad_norm") == "train/grad_norm"
    assert tag_of("train", "grad_norm/generator") == "grad_norm/generator"
    assert tag_of("train", "slowest_rank") == "vitals/slowest_rank"
    assert tag_of("validation", "attention/mass/layer_0") == "attention/mass/layer_0"
    assert tag_of("validation", "exact_match/style") == "validation/exact_match/style"
