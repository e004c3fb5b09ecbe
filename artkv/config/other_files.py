"""Files of another kind that are given in a config's place, told by the keys they have."""

from collections.abc import Iterable, Mapping

# What it is, keys of which any is enough, and the remedy.
_KINDS = (
    ("a sweep's file", {"grid", "runs"}, "give it to artkv sweep, or give the config that its key `config` names"),
    (
        "DeepSpeed's config",
        {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size", "bf16", "fp16"},
        "give a config, and name this file in it as training.deepspeed",
    ),
    (
        "a model's config",
        {"model_type", "architectures", "image_processor_type", "tokenizer_class"},
        "give a config, and name the folder of this file in it as model.blip2",
    ),
    ("a file that a run wrote", {"format_version"}, "give the config.yaml of the run's folder"),
)


def other_kind(tree: Mapping[str, object], sections: Iterable[str]) -> str | None:
    """What a tree of settings is instead of a config, and the remedy; None if it may be a config.

    sections: those of a config; a tree that has one of them is one.
    """
    if tree.keys() & set(sections):
        return None
    for what, keys, remedy in _KINDS:
        if found := sorted(tree.keys() & keys):
            return f"is {what}, by its key {found[0]}; {remedy}"
    return None
