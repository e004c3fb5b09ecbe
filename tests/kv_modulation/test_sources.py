import pytest

from artkv.kv_modulation import ArtSource


def test_a_name_is_one_that_parameters_can_have() -> None:
    for name in ("", "a.b", "a/b", "a b", "é"):
        with pytest.raises(ValueError, match="give one of letters, digits, _ and -"):
            ArtSource(name, 3)
    assert ArtSource("clip-vit_L14", 3).name == "clip-vit_L14"


def test_tokens_are_one_each_and_of_what_is_pooled_as_many_as_asked_for() -> None:
    assert ArtSource("one", 3).prefix_tokens(8) == 8
    assert ArtSource("one", 3, num_tokens=5).prefix_tokens(8) == 5
