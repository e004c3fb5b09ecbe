"""The configs of a quickstart's two trainings, and which folders it goes on in."""

from dataclasses import replace
from pathlib import Path

import pytest

from artkv.config import Config, load_config, override_config, recipe_path
from artkv.errors import UserError
from artkv.quickstart.settings import QuickstartSettings


@pytest.fixture
def settings(tmp_path: Path) -> QuickstartSettings:
    return QuickstartSettings(tmp_path / "quickstart", seed=7, ranks=2)


def write_both(settings: QuickstartSettings) -> list[Config]:
    return [load_config(settings.write_config(is_modulated)) for is_modulated in (True, False)]


def test_the_recipe_gets_the_worlds_paths(settings: QuickstartSettings) -> None:
    modulated, control = write_both(settings)
    world = settings.output_dir / "world"
    assert modulated.model.blip2 == str(world / "blip2")
    assert modulated.dataset.train == world / "data" / "train.csv"
    assert modulated.dataset.image_root == world / "data" / "images"
    assert modulated.efficientnet.checkpoint == settings.output_dir / "art_encoder" / "test_efficientnet.safetensors"
    assert modulated.training.seed == 7
    assert modulated.run.output_dir == settings.output_dir
    # The control has a folder of its own and no prefix, and is otherwise the same.
    changes = ["kv_modulation.enabled=false", f"run.output_dir={settings.output_dir / 'control'}"]
    assert control == override_config(modulated, changes)
    assert modulated.evaluation == load_config(recipe_path("quickstart.yaml")).evaluation


def test_another_efficientnet_is_taught_under_its_own_name(settings: QuickstartSettings) -> None:
    other = replace(settings, overrides=("efficientnet.architecture=efficientnet_b3", "efficientnet.image_size=80"))
    assert (other.network.architecture, other.network.image_size) == ("efficientnet_b3", 80)
    encoder = other.config(True).efficientnet
    assert encoder is not None
    assert encoder.checkpoint == settings.output_dir / "art_encoder" / "efficientnet_b3.safetensors"


@pytest.mark.parametrize(("ranks", "batch_size", "accumulation"), [(1, 32, 1), (2, 16, 1), (4, 8, 1)])
def test_a_step_has_32_questions_however_many_share_them(
    settings: QuickstartSettings, ranks: int, batch_size: int, accumulation: int
) -> None:
    training = replace(settings, ranks=ranks).config(True).training
    assert (training.batch_size, training.gradient_accumulation_steps) == (batch_size, accumulation)
    assert ranks * batch_size * accumulation == 32


def test_a_relative_folder_gives_the_same_inputs(settings: QuickstartSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.output_dir.parent)
    relative = replace(settings, output_dir=Path("quickstart"))
    assert override_config(relative.config(True), [f"run.output_dir={settings.output_dir}"]) == settings.config(True)
    write_both(settings)
    relative.check()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sed=3", "did you mean 'seed'?"),
        ("training.num_epochs=many", "training.num_epochs = 'many'"),
        ("run.output_dir=elsewhere", "the quickstart gives run.output_dir itself; leave it out"),
        ("training.seed=3", "the quickstart gives training.seed itself"),
    ],
)
def test_wrong_overrides_are_found_before_anything_is_made(
    settings: QuickstartSettings, override: str, message: str
) -> None:
    with pytest.raises(UserError) as error:
        replace(settings, overrides=(override,)).check()
    assert message in str(error.value)
    assert not settings.output_dir.exists()


def test_a_folder_of_other_settings_is_refused(settings: QuickstartSettings) -> None:
    settings.check()
    write_both(settings)
    settings.check()
    replace(settings, ranks=4).check()
    with pytest.raises(UserError, match=r"holds a quickstart with training\.seed = 7, wanted is 8; delete the folder"):
        replace(settings, seed=8).check()
    for override in ("training.num_epochs=2", "model.backend=lavis"):
        with pytest.raises(UserError, match=rf"{override.split('=')[0]} = .*, wanted is {override.split('=')[1]}; "):
            replace(settings, overrides=(override,)).check()


def test_a_folder_may_be_moved(settings: QuickstartSettings) -> None:
    write_both(settings)
    moved = settings.output_dir.rename(settings.output_dir.with_name("moved"))
    replace(settings, output_dir=moved).check()
