"""YAML and --set to settings: values, paths, and errors that name key, value and remedy."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from artkv.config import Config, dump_config, load_config, recipe_path
from artkv.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for config files that is not the working directory."""
    (tmp_path / "work").mkdir()
    (tmp_path / "settings").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "settings"


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# Values


def test_empty_file_and_empty_sections_are_the_defaults(folder: Path) -> None:
    assert load_config(write(folder, "")) == Config()
    assert load_config(write(folder, "training:\n  # seed: 3\ntrainable:\n  lora:\n")) == Config()


def test_overrides_take_yaml_values(folder: Path) -> None:
    path = write(folder, "training: {seed: 1, num_epochs: 2}\n")
    config = load_config(
        path,
        [
            "training.seed=7",
            "kv_modulation.enabled=false",
            "trainable.lora.targets=[qformer, opt]",
            "trainable.lora.rank=4",
            'dataset.prompt="Q: {question} A:"',
            "training.early_stopping_patience=null",
            "efficientnet.mean=[0.5, 0.5, 0]",
            "run={log_every: 3}",
            "training.seed = 8",  # the later one wins, and blanks do not matter
        ],
    )
    assert config.training.seed == 8
    assert config.training.num_epochs == 2
    assert config.kv_modulation.enabled is False
    assert config.trainable.lora.targets == ("qformer", "opt")
    assert config.trainable.lora.rank == 4
    assert config.dataset.prompt == "Q: {question} A:"
    assert config.training.early_stopping_patience is None
    assert config.efficientnet.mean == (0.5, 0.5, 0.0)
    assert config.run.log_every == 3


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", "0.0001"])
def test_numbers_with_exponents_need_no_dot(folder: Path, text: str) -> None:
    expected = pytest.approx(1e-4, rel=1e-12)
    assert load_config(write(folder, f"training:\n  learning_rate: {text}\n")).training.learning_rate == expected
    assert load_config(write(folder, ""), [f"training.learning_rate={text}"]).training.learning_rate == expected


def test_byte_order_mark_is_no_key(folder: Path) -> None:
    assert load_config(write(folder, "\ufefftraining: {seed: 4}\n")).training.seed == 4


def test_settings_do_not_change_after_loading(folder: Path) -> None:
    config = load_config(write(folder, ""))
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 3  # type: ignore[misc]


# Errors


def test_unknown_keys_get_the_nearest_known_one(folder: Path) -> None:
    message = error_of(write(folder, "training:\n  learning_rat: 0.1\n"))
    assert str(folder / "my.yaml") in message
    assert "training.learning_rat = 0.1: unknown key; did you mean 'learning_rate'?" in message


def test_unknown_keys_that_belong_elsewhere_say_where(folder: Path) -> None:
    assert "did you mean 'kv_modulation.num_prefix_tokens'?" in error_of(
        write(folder, "training:\n  num_prefix_tokens: 4\n")
    )
    assert "num_epochs = 3: unknown key; did you mean 'training.num_epochs'?" in error_of(
        write(folder, ""), "num_epochs=3"
    )


def test_unknown_keys_like_nothing_get_the_list(folder: Path) -> None:
    message = error_of(write(folder, ""), "trainable.lora.zzz=1")
    assert "trainable.lora.zzz = 1: unknown key; known keys here: targets, rank, alpha" in message
    assert "known keys here: model, efficientnet" in error_of(write(folder, "zzz: {a: 1}\n"))


def test_all_problems_are_told_at_once(folder: Path) -> None:
    message = error_of(write(folder, "training: {seed: -1, batch_size: 0}\nmodell: {}\nkv_modulation: {gate: one}\n"))
    assert len(message.splitlines()) == 5
    assert "training.seed = -1: " in message
    assert "give a whole number of 0 or more" in message
    assert "training.batch_size = 0: " in message
    assert "kv_modulation.gate = 'one': " in message
    assert "modell = {}: unknown key; did you mean 'model'?" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.num_epochs", "3.5"),
        ("training.num_epochs", '"3"'),
        ("training.num_epochs", "true"),  # Python would take it for 1
        ("training.learning_rate", "yes"),
        ("training.learning_rate", "fast"),
        ("training.learning_rate", ".inf"),
        ("training.learning_rate", ".nan"),
        ("training.learning_rate", "0"),
        ("training.weight_decay", "-0.1"),
        ("training.pack_questions", "1"),
        ("training.warmup_steps", "-1"),
        ("training.warmup_steps", "some"),
        ("training.activation_checkpointing", "most"),
        ("training.activation_checkpointing", "3"),
        ("evaluation.each_epoch", "sometimes"),
        ("training.deterministic", "1"),
        ("kv_modulation.enabled", '"false"'),
        ("kv_modulation.num_prefix_tokens", "null"),
        ("efficientnet.mean", "[0.5, 0.5]"),
        ("efficientnet.std", "[0.5, 0.5, 0]"),
        ("trainable.lora.targets", "[vit]"),
        ("trainable.lora.targets", "opt"),
        ("model.blip2", "null"),
        ("model.backend", "timm"),
        ("frozen.resident_blocks", "most"),
        ("frozen.resident_blocks", "-1"),
        ("frozen.opt", "disk"),
        ("frozen.memory_budget", "8 apples"),
        ("run.output_dir", "null"),
        ("training.seed", "9223372036854775808"),
        ("training.learning_rate", "1e30"),
        ("training.num_epochs", "1000000000"),
        ("training.gradient_accumulation_steps", "1000000000"),
        ("distributed.timeout_minutes", "1e300"),
        ("frozen.memory_budget", "1e400GiB"),
    ],
)
def test_wrong_values_name_key_value_and_remedy(folder: Path, key: str, value: str) -> None:
    message = error_of(write(folder, ""), f"{key}={value}")
    lines = message.splitlines()
    assert len(lines) == 2, message
    assert lines[1].startswith(f"  {key} = "), message
    assert "; give " in lines[1], message
    assert "give None" not in lines[1], message


def test_prompt_must_hold_the_question_once(folder: Path) -> None:
    for prompt in ("Answer:", "{question} {question}"):
        message = error_of(write(folder, f'dataset:\n  prompt: "{prompt}"\n'))
        assert f"dataset.prompt = {prompt!r}: must contain {{question}} exactly once" in message


def test_a_path_or_a_text_in_yaml_is_one(folder: Path) -> None:
    for written in (
        "dataset: {train: [a, b]}",
        "dataset: {train: 3}",
        "run: {output_dir: 7}",
        "dataset: {prompt: 1.5}",
    ):
        assert "; give a" in error_of(write(folder, written))


def test_nothing_trainable_is_an_error_that_names_the_ways_out(folder: Path) -> None:
    path = write(folder, "trainable: {qformer_cross_attention: false}\n")
    assert load_config(path).trainable.qformer_cross_attention is False  # the prefix still trains
    message = error_of(path, "kv_modulation.enabled=false")
    assert "nothing trains" in message
    assert "trainable.lora.targets" in message
    load_config(path, ["kv_modulation.enabled=false", "trainable.lora.targets=[opt]"])


def test_sections_are_no_values(folder: Path) -> None:
    assert "training is a section" in error_of(write(folder, "training: {seed: 1}\n"), "training=3")
    assert "training = 3: is a section; give keys under it" in error_of(write(folder, ""), "training=3")
    assert "training = [1]: is a section" in error_of(write(folder, "training: [1]\n"))
    assert "training.seed = {'x': 3}: " in error_of(write(folder, "training: {seed: 1}\n"), "training.seed.x=3")


@pytest.mark.parametrize("override", ["training.seed", "=3", "training.=3", ".seed=3", "training..seed=3"])
def test_malformed_overrides(folder: Path, override: str) -> None:
    assert "expected section.key=value" in error_of(write(folder, ""), override)


def test_keys_given_twice_are_refused(folder: Path) -> None:
    """PyYAML would keep the last one, and the whole first section would be lost in silence."""
    message = error_of(write(folder, "training:\n  seed: 1\nmodel: {}\ntraining:\n  num_epochs: 3\n"))
    assert "'training' is given twice" in message
    assert "line 4" in message


def test_unreadable_files(folder: Path) -> None:
    assert "cannot be read" in error_of(folder / "absent.yaml")
    assert "cannot be read" in error_of(folder)
    assert "not valid YAML" in error_of(write(folder, "training: {seed: 1\n"))
    assert "and no sections such as 'model:'" in error_of(write(folder, "- 1\n"))
    (folder / "latin.yaml").write_bytes("dataset: {train: caf\u00e9.csv}\n".encode("latin-1"))
    assert "not UTF-8" in error_of(folder / "latin.yaml")


def test_no_python_objects_from_yaml(folder: Path) -> None:
    assert "not valid YAML" in error_of(write(folder, "training: !!python/object/apply:os.getcwd []\n"))


# Paths


def test_inputs_are_relative_to_the_file_and_overrides_to_the_working_directory(folder: Path) -> None:
    path = write(
        folder,
        "efficientnet: {checkpoint: ../b3.pth}\n"
        "dataset: {train: data/train.csv, val: /abs/val.csv, image_root: ~/pictures}\n"
        "run: {output_dir: outputs/x}\n",
    )
    config = load_config(Path("../settings/my.yaml"), ["dataset.test=data/test.csv"])
    assert config == load_config(path, ["dataset.test=data/test.csv"])
    assert config.efficientnet.checkpoint == folder.parent / "b3.pth"
    assert config.dataset.train == folder / "data/train.csv"
    assert config.dataset.val == Path("/abs/val.csv")
    assert config.dataset.image_root == Path.home() / "pictures"
    assert config.dataset.test == folder.parent / "work/data/test.csv"
    assert config.run.output_dir == Path("outputs/x")


def test_names_stay_names_unless_a_file_is_there(folder: Path) -> None:
    path = write(folder, "model: {blip2: Salesforce/blip2-opt-2.7b}\ntraining: {deepspeed: my_zero.json}\n")
    config = load_config(path)
    assert config.model.blip2 == "Salesforce/blip2-opt-2.7b"
    assert config.training.deepspeed == "my_zero.json"
    (folder / "my_zero.json").write_text("{}")
    assert load_config(path).training.deepspeed == str(folder / "my_zero.json")
    Path("tiny").mkdir()
    assert load_config(path, ["model.blip2=tiny"]).model.blip2 == str(folder.parent / "work/tiny")


@pytest.mark.parametrize(
    ("written", "resolved"),
    [("./absent", "settings/absent"), ("../absent", "absent"), ("/absent", "/absent"), ("~/absent", "~/absent")],
)
def test_what_is_written_as_a_path_is_one_though_nothing_is_there(folder: Path, written: str, resolved: str) -> None:
    config = load_config(write(folder, f"model: {{blip2: {written}}}\ntraining: {{deepspeed: {written}}}\n"))
    expected = str(folder.parent / Path(resolved).expanduser())
    assert config.model.blip2 == expected
    assert config.training.deepspeed == expected


def test_an_empty_path_is_an_error(folder: Path) -> None:
    """Resolved, it would be the config's own folder."""
    assert "dataset.train = '': is empty" in error_of(write(folder, 'dataset: {train: ""}\n'))
    assert load_config(write(folder, "dataset: {train: a.csv}\n"), ["dataset.train="]).dataset.train is None


# Round trip


def test_dump_reads_back_equal(folder: Path, tmp_path: Path) -> None:
    config = load_config(
        write(folder, "dataset: {train: Gemälde/train.csv}\n"),
        [
            "training.learning_rate=3e-7",
            "dataset.prompt=\"日本: {question}\\n- # 'x' \"",
            "trainable.lora.targets=[opt]",
            'run.output_dir="1e4"',
            'efficientnet.architecture="null"',
        ],
    )
    (tmp_path / "elsewhere").mkdir()
    again = load_config(write(tmp_path / "elsewhere", dump_config(config)))
    assert again == config
    assert dump_config(again) == dump_config(config)
    assert load_config(write(tmp_path / "elsewhere", dump_config(Config()))) == Config()


# The recipe


def dotted_keys(tree: dict[str, Any], dotted: str = "") -> set[str]:
    keys = set()
    for key, value in tree.items():
        keys |= dotted_keys(value, f"{dotted}{key}.") if isinstance(value, dict) else {f"{dotted}{key}"}
    return keys


def schema_keys(section: type[BaseModel], dotted: str = "") -> set[str]:
    keys = set()
    for key, field in section.model_fields.items():
        kind = field.annotation
        kind = next((one for one in get_args(kind) if isinstance(one, type) and issubclass(one, BaseModel)), kind)
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys |= schema_keys(kind, f"{dotted}{key}.") if is_section else {f"{dotted}{key}"}
    return keys


RECIPE_PATHS = {
    "efficientnet": {"checkpoint"},
    "dataset": {"train", "val", "test", "image_root"},
}


def test_recipe_names_every_key_and_holds_the_defaults() -> None:
    path = recipe_path("artquest.yaml")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert dotted_keys(tree) == schema_keys(Config)
    values, defaults = load_config(path).model_dump(), Config().model_dump()
    for section, keys in RECIPE_PATHS.items():
        for key in keys:
            assert values[section].pop(key) is not None
            defaults[section].pop(key)
    assert values == defaults


def test_minimal_recipe_sets_nothing_but_paths() -> None:
    given = load_config(recipe_path("minimal.yaml")).model_dump()
    for section, keys in RECIPE_PATHS.items():
        assert all(given[section][key] is not None for key in keys)
    full = load_config(recipe_path("artquest.yaml")).model_dump()
    for tree in (given, full):
        tree["run"].pop("output_dir")
        for section, keys in RECIPE_PATHS.items():
            for key in keys:
                tree[section].pop(key)
    assert given == full


def test_every_field_tells_what_it_accepts() -> None:
    def fields_without(section: type[BaseModel]) -> list[str]:
        missing = []
        for key, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                missing += fields_without(kind)
            elif not field.description:
                missing.append(key)
        return missing

    assert fields_without(Config) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.opt=opt", "model.opt is for a LAVIS .pth, and model.blip2 = 'Salesforce/blip2-opt-2.7b' is none"),
        ("frozen={opt: resident, slots: 3}", "frozen.slots is for streamed blocks"),
        ("frozen={opt: nf4, storage: int8}", "frozen.storage is for streamed blocks"),
        ("frozen={opt: resident, vit: stream, memory_budget: 8GiB}", "frozen.memory_budget is for streamed blocks"),
        ("frozen.slots=3", "frozen.slots is for streamed blocks"),  # with opt: auto, which chooses them itself
        ("frozen={vit: stream, storage: int8}", "frozen.storage is for streamed blocks"),
        ("frozen={opt: stream, resident_blocks: auto}", "auto needs frozen.memory_budget"),
        ("training.early_stopping_patience=2", "early_stopping_patience needs validation; set dataset.val"),
    ],
)
def test_a_setting_that_would_do_nothing_is_an_error(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(folder, "training: {seed: 1}\n"), [override])


@pytest.mark.parametrize(
    ("written", "kept"), [("true", 0), ("false", None), ("2GiB", 2 * 2**30), ("1.5 MB", 1_500_000)]
)
def test_activations_that_are_kept_are_a_number_of_bytes(folder: Path, written: str, kept: int | None) -> None:
    config = load_config(write(folder, f"training: {{activation_checkpointing: {written}}}\n"))
    assert config.training.kept_activation_bytes == kept
    (folder / "again.yaml").write_text(dump_config(config))
    assert load_config(folder / "again.yaml") == config


def test_what_is_auto_has_no_value_before_it_is_chosen(folder: Path) -> None:
    config = load_config(write(folder, "training: {seed: 1}\n"))
    assert config.frozen.feature_cache == "auto"  # and no folder of that name
    for value in (lambda: config.training.kept_activation_bytes, lambda: config.frozen.feature_folder):
        with pytest.raises(RuntimeError, match="is auto"):
            value()
    named = load_config(write(folder, "frozen: {feature_cache: ./auto}\n"))
    assert named.frozen.feature_folder == folder / "auto"


@pytest.mark.parametrize(
    ("settings", "validates"),
    [("", False), ("dataset: {val: val.csv}", True), ("dataset: {val: v.csv}\nevaluation: {each_epoch: false}", False)],
)
def test_validation_is_where_there_is_something_to_validate_on(folder: Path, settings: str, validates: bool) -> None:
    assert load_config(write(folder, settings)).validates is validates
