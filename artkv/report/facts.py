"""What a report says of the model, the training and the machine, as names with texts."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any

from artkv.config import ArtEncoderConfig, KVModulationConfig
from artkv.config.dataset_schema import SPLITS
from artkv.config.yaml_text import dump_yaml
from artkv.report.evidence import Evidence
from artkv.report.plots import number
from artkv.run_folder.checkpoint import ADAPTER

Facts = list[tuple[str, str]]


def training_facts(evidence: Evidence) -> Facts:
    """How it was trained, and for how long; what the folder does not say is left out."""
    config, status, last = evidence.config, evidence.status, evidence.training[-1] if evidence.training else {}
    training = config.training
    facts = [("steps", f"{status.step:,}" + (f" of {status.total_steps:,}" if status.total_steps else ""))]
    if (seen := last.get("questions_seen")) is not None:
        facts.append(("questions seen", f"{round(seen):,}"))
    if (epoch := last.get("epoch")) is not None:
        facts.append(("epochs", number(epoch)))
    facts.append(("learning rate, weight decay", f"{number(training.learning_rate)}, {number(training.weight_decay)}"))
    facts.append(("seed", str(training.seed)))
    if seconds := training_seconds(evidence.training):
        facts.append(("time in training steps", duration(seconds)))
    if len(evidence.training) > 1:
        first, last_time = evidence.training[0]["time"], evidence.training[-1]["time"]
        facts.append(("first to last log line", f"{_day(first)} to {_day(last_time)}, {duration(last_time - first)}"))
    if status.state != "finished":
        facts.append(("state", status.state))
    # Before the first step too, which chooses no checkpoint.
    scored = [record for record in evidence.validations if record.get("exact_match") is not None and record["step"] > 0]
    if scored:
        best = max(scored, key=lambda record: record["exact_match"])
        facts.append(("best validation exact match", f"{best['exact_match']:.3f} at step {best['step']:,}"))
    return facts


def model_facts(evidence: Evidence) -> Facts:
    """What was trained on what, by names and hashes, and where."""
    config, checkpoint, environment = evidence.config, evidence.checkpoint, evidence.environment
    prefix = config.kv_modulation
    facts = [("BLIP-2", _short(config.model.blip2)), ("backend", config.model.backend)]
    if prefix.enabled:
        facts.append(("injection", _injection(prefix)))
        facts += [("art encoder", _art_encoder(encoder)) for encoder in config.encoders]
    else:
        facts.append(("prefix", "none: the control"))
    trained = [
        name
        for name, is_trained in (
            ("prefix generator", prefix.enabled),
            ("Q-Former's cross-attention", config.trainable.qformer_cross_attention),
            *((f"LoRA on {target}", True) for target in config.trainable.lora.targets),
        )
        if is_trained
    ]
    facts.append(("trained", ", ".join(trained)))
    paths = {split: getattr(config.dataset, split) for split in SPLITS}
    facts += [(f"{split} questions", _short(path)) for split, path in paths.items() if path is not None]
    facts.append(("checkpoint", evidence.evaluations[0].checkpoint))
    if checkpoint is None:
        facts.append(("hashes", "unknown: the checkpoint is no longer in the run's folder"))
    else:
        facts.append((f"SHA-256 of {ADAPTER}", checkpoint.checksums[ADAPTER]))
        facts.append(("hash of the frozen weights", checkpoint.frozen_hash))
        facts.append(("hash of the training questions", checkpoint.identity.data_hash))
        facts.append(("computed in", checkpoint.identity.dtype))
    return facts + _machine(environment)


def _art_encoder(encoder: ArtEncoderConfig) -> str:
    """Such as `convnext_atto, atto.pth, map of 4 x 4, whole picture`; of an EfficientNet pooled the first two alone."""
    size = encoder.size
    read = {"pooled": None, "map": f"map of {size} x {size}", "tokens": f"{size} tokens"}[encoder.read]
    view = "whole picture" if encoder.view == "whole" else None
    weights = _short(encoder.checkpoint) if encoder.checkpoint else None
    return ", ".join(filter(None, (encoder.architecture, weights, read, view)))


def _injection(settings: KVModulationConfig) -> str:
    """Such as `concat: 8 tokens, one for all layers, a gate that starts at zero`."""
    parts = []
    if settings.injection == "film":
        parts.append(
            "scales and shifts of " + ("the query tokens" if settings.film == "queries" else "keys and values")
        )
    else:
        parts.append(f"{settings.num_prefix_tokens} tokens")
    if settings.injection == "prompt":
        parts.append("read by OPT")
    elif settings.film != "queries":
        parts.append("one for all layers" if settings.shared_across_layers else "one for each layer")
    if settings.gate == "zero":
        each = {"model": "a gate that starts", "layer": "gates that start", "head": "gates of heads that start"}
        parts.append(f"{each[settings.gate_per]} at zero")
    return f"{settings.injection}: {', '.join(parts)}"


def _machine(environment: Mapping[str, Any]) -> Facts:
    facts = []
    if gpus := environment.get("gpus"):
        names = list(dict.fromkeys(f"{gpu['name']}, {_gib(gpu['memory_bytes'])}" for gpu in gpus))
        facts.append(("GPUs", f"{len(gpus)} x {'; '.join(names)}"))
    elif environment:
        facts.append(("GPUs", "none"))
    if environment.get("cpu"):
        facts.append(("CPU", f"{environment['cpu']}, {environment.get('cpu_cores_usable')} cores usable"))
    if environment.get("host_memory_bytes"):
        facts.append(("host memory", _gib(environment["host_memory_bytes"])))
    if environment.get("platform"):
        facts.append(("platform", environment["platform"]))
    if ranks := environment.get("variables", {}).get("WORLD_SIZE"):
        facts.append(("ranks", ranks))
    if (git := environment.get("git")) and git.get("commit"):
        facts.append(("git commit", git["commit"] + (", with changes" if git.get("changed") else "")))
    return facts


def versions(evidence: Evidence) -> Facts:
    """Of Python, CUDA and the packages, as environment.json has them."""
    environment = evidence.environment
    facts = [("python", environment.get("python")), ("CUDA runtime", environment.get("cuda_runtime"))]
    facts += environment.get("packages", {}).items()
    return [(name, version) for name, version in facts if version]


def settings_text(evidence: Evidence) -> str:
    """The config as YAML; of each absolute path its name alone, since the rest tells of somebody's disk."""
    return dump_yaml(names_alone(evidence.config.model_dump(mode="json")))


def training_seconds(training: Sequence[Mapping[str, Any]]) -> float:
    """The time that training steps took, from the questions of each log line and their rate; pauses are not in it."""
    seconds, before = 0.0, 0.0
    for record in training:
        seen, rate = record.get("questions_seen"), record.get("questions_per_second")
        if seen is not None and rate:
            seconds += (seen - before) / rate
        before = before if seen is None else seen
    return seconds


def duration(seconds: float) -> str:
    """Such as 3.2 hours, 14 minutes or 8 seconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    if seconds >= 90:
        return f"{round(seconds / 60)} minutes"
    return f"{round(seconds)} seconds"


def without_folders(text: str) -> str:
    """A message with the name alone of each absolute path in it."""
    return re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", text)


def names_alone(tree: Any) -> Any:
    """A tree of JSON with the name alone of each absolute path in it."""
    if isinstance(tree, dict):
        return {key: names_alone(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [names_alone(value) for value in tree]
    return _short(tree) if isinstance(tree, str) and PurePath(tree).is_absolute() else tree


def _short(path: object) -> str:
    """A path's name; what is no absolute path, such as a model's name on the hub, stays."""
    pure = PurePath(str(path))
    return pure.name if pure.is_absolute() else str(path)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.0f} GiB"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
