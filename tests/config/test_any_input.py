"""Whatever a config, `--set` or DeepSpeed's JSON holds: settings, or one `UserError`."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artkv.config import Config, dump_config, load_config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.config.schema import TrainingConfig
from artkv.errors import UserError
from tests.config.test_loading import schema_keys

T = TypeVar("T")

# About three seconds each.
few = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

KEYS = sorted(schema_keys(Config))
WORDS = sorted({part for key in KEYS for part in key.split(".")})
NUMBERS = st.one_of(
    st.integers(), st.integers(2**62, 2**70), st.floats(), st.sampled_from([10**400, -1, 0, 1, 0.5, 1e300, math.inf])
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.dates(), st.binary(max_size=4),
    st.sampled_from(["auto", "stream", "8GiB", "~", "~nobody/x", "/dev/null", "", "n" * 300, "{question}"]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=5), st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)
SECTIONS = st.dictionaries(
    st.sampled_from(sorted(Config.model_fields)),
    st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4),
    max_size=4,
)
FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *"[]{}:,-?!&*#|>'\"%@`\n\t \0\x1b", ": ", "- ", "\n  ", "<<: ", "&a ", "*a", "!!int ", "!!set ", "--- ",
                "!!python/object:os.x ", "!!timestamp ", "!!binary ", "0x_", "1:30", "2024-13-45", ".inf", "~",
            ]
        ),
        st.sampled_from(WORDS),
        st.text(max_size=4),
    ),
    max_size=30,
).map("".join)  # fmt: skip


def result_or_error(action: Callable[[], T]) -> T | None:
    """What it returns, or None where it raised a `UserError` of sensible length; any other error passes."""
    told = ""
    try:
        return action()
    except UserError as error:
        told = str(error)
    assert 0 < len(told) < 20_000
    return None


def config_or_error(content: bytes, overrides: list[str] = []) -> Config | None:  # noqa: B006
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.yaml"
        path.write_bytes(content)
        config = result_or_error(lambda: load_config(path, overrides))
        if config is None:
            return None
        again = Path(folder) / "again.yaml"
        again.write_text(dump_config(config), encoding="utf-8")
        assert load_config(again) == config
        return config


@few
@given(st.binary(max_size=200) | FRAGMENTS.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_config_or_an_error(content: bytes) -> None:
    config_or_error(content)


@few
@given(SECTIONS | TREES)
def test_any_tree_is_a_config_or_an_error(tree: Any) -> None:
    config_or_error(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@few
@given(
    st.lists(
        st.builds(
            lambda key, value: f"{key}={value}",
            st.one_of(st.sampled_from(KEYS), st.sampled_from(sorted(Config.model_fields)), st.text(max_size=8)),
            st.one_of(FRAGMENTS, TREES.map(repr), NUMBERS.map(str)),
        )
        | st.text(max_size=20),
        min_size=1,
        max_size=3,
    )
)
def test_any_override_is_taken_or_an_error(overrides: list[str]) -> None:
    config_or_error(b"training: {seed: 1}\n", overrides)


@few
@given(st.sampled_from([key for key in KEYS if key not in ("model.opt", "model.vit")]), NUMBERS)
def test_any_number_is_a_value_or_an_error(key: str, number: float) -> None:
    config_or_error(b"training: {seed: 1}\n", [f"{key}={number}"])


DEEPSPEED_WORDS = [
    "zero_optimization", "stage", "optimizer", "type", "params", "betas", "eps", "bf16", "fp16", "enabled", "auto",
    "reduce_bucket_size", "offload_optimizer", "device", "nvme", "data_types", "AdamW", "steps_per_print",
]  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.sampled_from([*DEEPSPEED_WORDS, 2])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(DEEPSPEED_WORDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
ALMOST = st.dictionaries(st.sampled_from(DEEPSPEED_WORDS), JSON, max_size=3).map(
    lambda tree: {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}} | tree
)


@few
@given((JSON | ALMOST).map(json.dumps) | st.text())
def test_any_json_is_deepspeeds_or_an_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ds.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        result_or_error(
            lambda: fill_deepspeed_config(load_deepspeed_config(str(path)), TrainingConfig(), 1, 1, True, 10)
        )
