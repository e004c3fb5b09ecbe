"""Files that `artkv plan --write` would ruin."""

from tests.bad_inputs.cases import Area, BadInput

PLAN_FILES = Area(
    "The file that a plan is written into",
    [
        *(
            BadInput(
                f"{what} to write the plan into",
                lambda place, text=text: [
                    "plan",
                    "--gpu-memory",
                    "8GiB",
                    "--write",
                    str(place.write("other.json", text)),
                ],
                ("--write {folder}/other.json", says),
            )
            for what, text, says in [
                (
                    "a run's status",
                    '{"format_version": 1, "state": "x"}',
                    "holds 'format_version', 'state', so it is no",
                ),
                (
                    "a sweep",
                    "config: a.yaml\ngrid: {training.seed: [1]}\n",
                    "so it is no config of artkv; give a config",
                ),
                (
                    "a table",
                    "image,question\na.png,Who?\n",
                    "holds a text alone, 'image,question a.png,Who?', and no keys such as 'model:'",
                ),
                ("a list for a section", "training: [1]\n", ": training = [1]: is a section; give keys under it"),
            ]
        ),
    ],
)
