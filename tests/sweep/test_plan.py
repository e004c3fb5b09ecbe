"""What a sweep's file comes to."""

import re
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.sweep.plan import Sweep, read_sweep

CONFIG = "training:\n  num_epochs: 2\n"


def sweep(tmp_path: Path, text: str) -> Sweep:
    (tmp_path / "base.yaml").write_text(CONFIG, encoding="utf-8")
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: base.yaml\noutput_dir: {tmp_path}/runs\n{text}", encoding="utf-8")
    return read_sweep(path)


def test_a_grid_is_each_combination_in_the_files_order(tmp_path: Path) -> None:
    found = sweep(tmp_path, "grid:\n  kv_modulation.num_prefix_tokens: [0, 4]\n  training.seed: [1, 2]\n")
    assert [run.name for run in found.runs] == [
        "num_prefix_tokens=0,seed=1", "num_prefix_tokens=0,seed=2",
        "num_prefix_tokens=4,seed=1", "num_prefix_tokens=4,seed=2",
    ]  # fmt: skip
    assert [run.index for run in found.runs] == [0, 1, 2, 3]
    modulation = [run.config.kv_modulation for run in found.runs]
    assert [one.enabled for one in modulation] == [False, False, True, True]  # no tokens: the control
    assert modulation[2].num_prefix_tokens == 4
    assert [run.config.training.seed for run in found.runs] == [1, 2, 1, 2]
    assert all(run.config.training.num_epochs == 2 for run in found.runs)
    assert found.runs[3].folder == tmp_path / "runs" / "num_prefix_tokens=4,seed=2"
    assert [[run.index for run in group] for group in found.groups()] == [[0, 1], [2, 3]]
    assert found.runs[2].setting == {"kv_modulation.num_prefix_tokens": 4}
    assert found.split == "val"


def test_runs_go_with_each_combination_of_a_grid(tmp_path: Path) -> None:
    found = sweep(
        tmp_path,
        "split: test\nruns:\n  - {kv_modulation.gate: zero}\n"
        "  - {kv_modulation.shared_across_layers: false, training.learning_rate: 1e-4}\ngrid:\n  training.seed: [7]\n",
    )
    assert [run.name for run in found.runs] == [
        "gate=zero,seed=7",
        "shared_across_layers=false,learning_rate=0.0001,seed=7",
    ]
    assert found.runs[1].config.training.learning_rate == 1e-4
    assert found.split == "test"
    assert found.run(1) is found.runs[1]
    with pytest.raises(UserError, match=r"--run 2: .*has runs 0 to 1"):
        found.run(2)


def test_keys_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    found = sweep(tmp_path, "runs:\n  - {training.batch_size: 4, evaluation.batch_size: 8}\n")
    assert found.runs[0].name == "training.batch_size=4,evaluation.batch_size=8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has neither grid nor runs"),
        ("grid: {training.seed: []}\n", "grid.training.seed is empty"),
        ("grid: {training.seed: 3}\n", "grid.training.seed = 3: Input should be a valid list"),
        (
            "grid: [{training.seed: [3]}, {training.seed: 3}]\n",
            "grid.1.training.seed = 3: Input should be a valid list",
        ),
        ("grid: [{training.seed: [3]}, {training.seed: []}]\n", "grid.training.seed is empty"),
        ("grid: [{training.seed: [3]}, 4]\n", "grid.1 = 4: Input should be a valid dictionary"),
        ("grid: [{training.seed: [3]}, {training.seed: [3]}]\n", "two runs are seed=3"),
        ("grid: [{}]\n", "has neither grid nor runs"),
        ("grid: []\n", "has neither grid nor runs"),
        ("gird: {training.seed: [3]}\n", "known keys: config, output_dir, split, grid, runs"),
        ("grid: {training.seed: [1, 1]}\n", "two runs are seed=1"),
        ("grid: {training.seeed: [1]}\n", r"run 0 \(seeed=1\):\n[^?]*did you mean 'seed'"),
        ("grid: {training.seed: [1]}\nruns: [{training.seed: 2}]\n", "training.seed is in grid and in runs"),
        ("grid: {training.seed: [one]}\n", "training.seed = 'one'"),
        (
            'grid: {"training.seed ": [1]}\n',
            "grid: the key 'training.seed ' holds a blank at its end or start; write 'training.seed'",
        ),
        (
            'runs: [{"training.se\\u200bed": 1}]\n',
            r"runs: the key 'training.se\\u200bed' holds U\+200B .*; type it anew",
        ),
        (
            "grid:\n  \u201ctraining.seed\u201d: [1]\n",
            r"grid: the key '\u201ctraining.seed\u201d' holds '\u201c', U\+201C \(LEFT DOUBLE QUOTATION MARK\)",
        ),
        ("gr\u0456d: {training.seed: [1]}\n", r"holds '\u0456', U\+0456 \(CYRILLIC SMALL LETTER BYEL.*; type it anew"),
        ("split: validation\ngrid: {training.seed: [1]}\n", "split"),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(tmp_path, text)


def test_a_grid_beyond_all_bounds_is_refused_at_once(tmp_path: Path) -> None:
    values = list(range(1000))
    with pytest.raises(UserError, match="1000000 runs, and 10000 are the most"):
        sweep(tmp_path, f"grid:\n  training.seed: {values}\n  training.num_epochs: {values}\n")


def test_grids_in_a_list_come_one_after_another(tmp_path: Path) -> None:
    found = sweep(
        tmp_path,
        "grid:\n  - {kv_modulation.injection: [concat, prompt], kv_modulation.num_prefix_tokens: [2, 4]}\n"
        "  - {kv_modulation.injection: [film]}\nruns: [{training.seed: 1}, {training.seed: 2}]\n",
    )
    names = ["concat,num_prefix_tokens=2", "concat,num_prefix_tokens=4", "prompt,num_prefix_tokens=2",
             "prompt,num_prefix_tokens=4", "film"]  # fmt: skip
    assert [run.name for run in found.runs] == [f"seed={seed},injection={name}" for seed in (1, 2) for name in names]
    assert [len(group) for group in found.groups()] == [2] * 5
    numbers = list(range(5001))
    with pytest.raises(UserError, match="that is 10002 runs, and 10000 are the most"):
        sweep(tmp_path, f"grid: [{{training.seed: {numbers}}}, {{training.num_epochs: {numbers}}}]\n")


@pytest.mark.parametrize(("page", "runs", "settings"), [("sweeps", [15, 22], [5, 22]), ("encoders", [3], [3])])
def test_the_sweeps_of_the_docs_are_read(tmp_path: Path, page: str, runs: list[int], settings: list[int]) -> None:
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall("```yaml\n(.*?)```", text, re.DOTALL) if "output_dir:" in block]
    (tmp_path / "my.yaml").write_text(CONFIG, encoding="utf-8")
    found = []
    for block in blocks:
        (tmp_path / "sweep.yaml").write_text(block, encoding="utf-8")
        found.append(read_sweep(tmp_path / "sweep.yaml"))
    assert [len(one.runs) for one in found] == runs
    assert [len(one.groups()) for one in found] == settings
    assert max(len(run.name) for one in found for run in one.runs) < 200


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("config: nowhere.yaml\noutput_dir: runs\ngrid: {training.seed: [1]}\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"sweep .*, its key config:\n.*nowhere\.yaml: cannot be read .*; give an existing config"
    ):
        read_sweep(path)
