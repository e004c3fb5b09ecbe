"""The whole table, and the page of the docs that is made of it: python -m tests.bad_inputs.table > docs/bad_input.md"""

from tests.bad_inputs.arrow_cases import ARROWS
from tests.bad_inputs.art_encoder_cases import ART_ENCODER
from tests.bad_inputs.cases import Area
from tests.bad_inputs.checkpoint_cases import CHECKPOINTS
from tests.bad_inputs.command_line_cases import COMMAND_LINE
from tests.bad_inputs.csv_cases import CSV
from tests.bad_inputs.deepspeed_cases import DEEPSPEED
from tests.bad_inputs.encoder_cases import ENCODERS
from tests.bad_inputs.export_cases import EXPORTS
from tests.bad_inputs.hub_cases import HUB
from tests.bad_inputs.init_cases import INIT
from tests.bad_inputs.injection_cases import INJECTION
from tests.bad_inputs.kind_cases import KINDS
from tests.bad_inputs.launch_cases import LAUNCH
from tests.bad_inputs.model_folder_cases import MODEL_FOLDERS
from tests.bad_inputs.model_settings_cases import MODEL_SETTINGS
from tests.bad_inputs.other_weight_cases import OTHER_WEIGHTS
from tests.bad_inputs.output_cases import PLACES
from tests.bad_inputs.picture_cases import PICTURES
from tests.bad_inputs.plan_file_cases import PLAN_FILES
from tests.bad_inputs.run_folder_cases import OUTPUT, STATUS
from tests.bad_inputs.set_cases import SET
from tests.bad_inputs.shard_cases import SHARDS
from tests.bad_inputs.weight_cases import WEIGHTS
from tests.bad_inputs.yaml_cases import YAML

AREAS: list[Area] = [
    YAML,
    SET,
    INJECTION,
    DEEPSPEED,
    COMMAND_LINE,
    LAUNCH,
    CSV,
    INIT,
    PICTURES,
    SHARDS,
    ARROWS,
    MODEL_FOLDERS,
    WEIGHTS,
    KINDS,
    OTHER_WEIGHTS,
    MODEL_SETTINGS,
    PLAN_FILES,
    ENCODERS,
    OUTPUT,
    STATUS,
    CHECKPOINTS,
    EXPORTS,
    HUB,
    PLACES,
    ART_ENCODER,
]


def page() -> str:
    """The text of docs/bad_input.md."""
    lines = [
        "# Wrong input, and what artkv says of it",
        "",
        "Each of these gets one message and exit code 1, or 2 where an option is none or cannot have that value;",
        "nothing is lost and nothing written. A test runs every row, and this page is made from the same table",
        "(`python -m tests.bad_inputs.table`).",
    ]
    for area in AREAS:
        lines += ["", f"## {area.title}", "", "| what is wrong | the message has |", "|---|---|"]
        for case in area.cases:
            parts = [_code(part) for part in case.says]
            lines.append(f"| {case.name} | {' … '.join(parts)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|").replace("{folder}/", "").replace("{world}/", "").strip()
    return f"`` {escaped} ``" if "`" in escaped else f"`{escaped}`"


if __name__ == "__main__":
    print(page(), end="")
