"""DeepSpeed files with what DeepSpeed would refuse after minutes, or ignore."""

import json
import os
from typing import Any

from tests.bad_inputs.cases import Area, BadInput, Make, Place

LEAST: dict[str, Any] = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {}}}


def content(text: str | bytes) -> Make:
    """`artkv check` of the world's config with this DeepSpeed file."""

    def make(place: Place) -> list[str]:
        return ["check", *place.config(f"training.deepspeed={place.write('ds.json', text)}")]

    return make


def changed(dotted: str, value: Any) -> Make:
    """The least file with one of its keys changed."""
    tree = json.loads(json.dumps(LEAST))
    *parents, key = dotted.split(".")
    section = tree
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    return content(json.dumps(tree))


def case(dotted: str, value: Any, *says: str) -> BadInput:
    return BadInput(
        f"`{dotted}: {json.dumps(value)}`",
        changed(dotted, value),
        ("training.deepspeed = {folder}/ds.json:", dotted, *says),
    )


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "ds.json")
    return ["check", *place.config(f"training.deepspeed={place.folder / 'ds.json'}")]


ZERO = "zero_optimization"
DEEPSPEED = Area(
    "DeepSpeed's file",
    [
        BadInput(
            "settings in a section called deepspeed",
            content(json.dumps({"deepspeed": LEAST})),
            ("zero_optimization: is missing; give it, with keys such as stage", "stand at the top of the file; take"),
        ),
        case(f"{ZERO}.reduce_bucket_size", -1, "give elements"),
        case(f"{ZERO}.reduce_bucket_size", "5e8", "give elements"),
        case(f"{ZERO}.reduce_bucket_size", 0.5, "give elements"),
        case(f"{ZERO}.reduce_bucket_size", 10**14, "give elements"),
        case(f"{ZERO}.allgather_bucket_size", 7, "give elements, an even number"),
        case(f"{ZERO}.stage", 3, "give 2"),
        case(f"{ZERO}.stage3_max_live_parameters", 1, "stage 3"),
        case(f"{ZERO}.overlap_com", True, "did you mean 'overlap_comm'?"),
        case(f"{ZERO}.offload_optimizer", {"device": "nvme"}, 'give "cpu" or "none"'),
        case(f"{ZERO}.offload_optimizer", {"device": "cpu", "pin_memory": "true"}, "give true or false"),
        case("optimizer.params.betas", [0.9], "give two numbers"),
        case("optimizer.params.betas", [0.9, 1.5], "give two numbers"),
        case("optimizer.params.eps", -1e-8, "give a number above 0"),
        case("optimizer.params.momentum", 0.9, "unknown key"),
        case("optimizer.type", "Lion", 'give "AdamW"'),
        BadInput(
            "`fp16.enabled: true`", changed("fp16.enabled", True), ("fp16.enabled is True", 'write "auto" in the JSON')
        ),
        case("data_types.grad_accum_dtype", "fp4", "give"),
        case("communication_data_type", 16, "give"),
        case("elasticity", {"enabled": True}, "leave it out"),
        case("amp", {"enabled": True}, "leave it out"),
        case("flops_profiler", {"enabled": True}, "leave it out"),
        case("activation_checkpointing", {"profile": True}, "of the YAML settles it"),
        case("scheduler", {"type": "OneCycle"}, "leave it out"),
        BadInput(
            "a key given twice", content('{"bf16": {}, "bf16": {}}'), ("'bf16' is given twice", "correct the file")
        ),
        BadInput("NaN", content('{"optimizer": {"params": {"eps": NaN}}}'), ("NaN is no number of JSON",)),
        *(
            BadInput(
                what,
                content(text),
                (
                    f"training.deepspeed = {{folder}}/ds.json: not readable JSON (line 2 has {escape}, which is half",
                    "correct",
                ),
            )
            for what, text, escape in [
                ("half of a character in a key", '{"bf16": {},\n "a\\ud800": 1}', r"\ud800"),
                ("half of a character in a text", '{"bf16": {},\n "optimizer": {"type": "\\uDFFFx"}}', r"\uDFFF"),
            ]
        ),
        BadInput(
            "a number of 5,000 digits",
            content(f'{{"steps_per_print": {5000 * "1"}}}'),
            ("not readable JSON (the number 11111111111111111111... has 5,000 digits); correct the file",),
        ),
        BadInput("100,000 lists in one another", content(100_000 * "["), ("nest too deeply",)),
        BadInput("a list", content("[]"), ("holds list, not an object",)),
        BadInput("half a file", content('{"bf16": '), ("not readable JSON",)),
        BadInput("a file of 2 MB", content(bytes(2**21)), ("more than the",)),
        BadInput("a pipe", pipe, ("is a pipe",)),
        BadInput(
            "a key with a character without width",
            content('{"zero_optimi\u200bzation": {"stage": 1}}'),
            (r"zero_optimi\u200bzation = ", "the key holds U+200B (ZERO WIDTH SPACE), which cannot be seen"),
        ),
    ],
)
