"""The settings that arguments give, and wrong ones."""

import argparse

import pytest

from artkv.art_encoder.arguments import ArtEncoderSettings, add_arguments, settings_from_arguments
from artkv.errors import UserError


def parse(*arguments: str) -> ArtEncoderSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from_arguments(parser.parse_args(arguments))


def test_arguments() -> None:
    settings = parse("--data", "wikiart", "--batch-size", "16", "--resume", "--validation", "val.csv")
    assert settings == ArtEncoderSettings(data="wikiart", batch_size=16, resume=True, validation="val.csv")
    assert settings.architecture == "efficientnet_b3"
    assert (settings.image_size, settings.epochs, settings.learning_rate) == (300, 30, 3e-4)


def test_wrong_arguments_are_named_together() -> None:
    with pytest.raises(UserError) as error:
        parse("--data", "wikiart", "--epochs", "zero", "--validation-fraction", "1.5")
    assert "--epochs zero: " in str(error.value)
    assert "--validation-fraction 1.5: " in str(error.value)
    with pytest.raises(UserError, match="^art-encoder: --data  : is empty, or holds a NUL; it is: "):
        parse("--data", " ")
    with pytest.raises(UserError, match="batch_size is 7: it must be even with mixup"):
        parse("--data", "wikiart", "--batch-size", "7")
    assert parse("--data", "wikiart", "--batch-size", "7", "--mixup", "0", "--cutmix", "0").batch_size == 7


def test_help_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "(default: 0.0003)" in capsys.readouterr().out
