"""The model card: what was trained on what, its scores with intervals, what the prefix adds, limits, how to load it."""

import json
from typing import Any

from artkv.evaluation.results import selection_note
from artkv.evaluation.scores import Estimate
from artkv.evaluation.verdicts import verdicts
from artkv.report.evidence import Evidence
from artkv.run_folder.checkpoint import Checkpoint
from artkv.sharing.shared_files import Description, art_encoder_file

# In this line a card says that push made it.
MADE_BY = "<!-- made by artkv push -->"


def scores_json(evidence: Evidence) -> dict[str, Any]:
    """The scores of each ablation, as `scores.json` holds them."""
    return {
        "split": evidence.split,
        "scores": {evaluation.label: evaluation.scores.to_json() for evaluation in evidence.evaluations},
    }


def card(
    repo: str, checkpoint: Checkpoint, description: Description, evidence: Evidence | None, licence: str | None
) -> str:
    """The README.md of a model, in Markdown with the metadata that the hub reads."""
    config = checkpoint.config
    prefix = config.kv_modulation
    trained = [
        *(["a key/value prefix generator"] if prefix.enabled else []),
        *(["the Q-Former's cross-attention"] if config.trainable.qformer_cross_attention else []),
        *(f"LoRA on {target}" for target in config.trainable.lora.targets),
    ]
    told = {"base_model": description.base_model, "library_name": "artkv", "license": licence}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in told.items() if value is not None)]
    lines += ["pipeline_tag: visual-question-answering", "tags: [artkv, blip-2, art]", "---", MADE_BY, f"# {repo}", ""]
    lines += [
        "Answers questions about paintings. Trained with artkv beside the frozen weights of "
        f"`{description.base_model}`: {', '.join(trained)}; {checkpoint.step:,} steps, seed {config.training.seed}.",
        "",
        f"- questions are put as: `{config.dataset.prompt}`",
        f"- base model: `{description.base_model}`, commit {description.base_revision or 'unknown'}",
        f"- hash of all frozen weights: `{description.frozen_hash}`; others are refused",
    ]
    if prefix.enabled:
        lines.append(f"- injection: {prefix.injection}")
        for number, encoder in enumerate(config.used_encoders):
            file = art_encoder_file(number)
            where = f"in this repository, `{file}`" if file in description.sha256 else "not in this repository"
            lines.append(f"- art encoder: a frozen {encoder.architecture}, read: {encoder.read} ({where})")
    lines += ["", "## Data and scores", ""]
    lines += _scores(evidence) if evidence is not None else ["Not evaluated: nothing is known of what it scores."]
    lines += ["", "## Use", "", "```python", "from artkv import load_model", "", f'model = load_model("{repo}")']
    lines += ['print(model.ask("painting.jpg", "Which style is this?"))', "```", ""]
    lines += [
        "With plain transformers: `artkv export --checkpoint "
        f"{repo} --format transformers --output exported`, then `Blip2ForConditionalGeneration.from_pretrained` "
        "on that folder, with the lines of artkv's docs/checkpoints.md that set a painting's prefix.",
        "",
        "## Limits",
        "",
        "It answers in few words, whatever the question, also where it does not know. Scores are of the questions "
        "above; on others they may be lower. Answers repeat what the training's answers had, biases included.",
        "",
        "## Licence",
        "",
        f"{licence or 'Not stated by the author.'} The base model and the data have licences of their own.",
    ]
    return "\n".join(lines) + "\n"


def _scores(evidence: Evidence) -> list[str]:
    first = evidence.evaluations[0].scores.overall
    lines = [
        f"The {evidence.split} split: {first.count:,} questions on {first.clusters:,} paintings. Exact match with 95% "
        "intervals over paintings:",
        "",
    ]
    names = [evaluation.label for evaluation in evidence.evaluations]
    lines += [f"| questions | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    of_each = [evaluation.scores for evaluation in evidence.evaluations]
    lines += [_row("all", [scores.overall.exact_match for scores in of_each])]
    for kind in evidence.evaluations[0].scores.by_type:
        of_kind = [scores.by_type[kind].exact_match for scores in of_each if kind in scores.by_type]
        if len(of_kind) == len(names):
            lines.append(_row(kind.replace("|", "/"), of_kind))
    if chosen := selection_note(evidence.run_dir, evidence.split, evidence.evaluations[0].checkpoint):
        lines += ["", f"{chosen}."]
    if evidence.comparison is not None:
        lines += ["", "What the prefix adds, by the tests of artkv compare:", ""]
        lines += [f"- {' '.join(sentence.split())}" for sentence in verdicts(evidence.comparison)]
        seeds = evidence.comparison.seeds
        lines += [f"- note: {seeds.warning}"] if seeds is not None and seeds.warning else []
        lines += [f"- note: {note}" for note in evidence.comparison.notes if note != chosen]
    return lines


def _row(name: str, estimates: list[Estimate]) -> str:
    cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in estimates]
    return f"| {' '.join(name.split())} | {' | '.join(cells)} |"
