"""The mapping of names, against rules written down apart from it and at full size."""

import pytest
import torch

from artkv.config import ModelConfig
from artkv.errors import UserError
from artkv.models.files.blip2_files import BLIP2_OPT_2_7B, stock_blip2
from artkv.models.files.lavis_names import (
    LavisNamed,
    from_lavis,
    is_unused,
    is_unused_of_vit,
    join_qkv_bias,
    split_qkv_bias,
    to_lavis,
)
from artkv.planning.shapes import read_blip2_config
from tests.models.lavis_writing import lavis_sized_blip2, lavis_state


def test_every_name_of_the_full_size_model_goes_there_and_back() -> None:
    names = list(stock_blip2(read_blip2_config(ModelConfig(blip2=BLIP2_OPT_2_7B))).state_dict())
    assert len(names) == 1248
    seen: set[str] = set()
    for name in names:
        for lavis in to_lavis(name):
            assert from_lavis(lavis) == name
            assert not is_unused(lavis)
            assert lavis not in seen
            seen.add(lavis)
    assert len(seen) == 1248 + 39  # each block of the ViT has two biases for one


def test_names_and_values_are_those_of_rules_written_apart() -> None:
    model = lavis_sized_blip2(320)
    tensors = model.state_dict()

    class Source:
        def names(self) -> list[str]:
            return list(tensors)

        def tensor(self, name: str) -> torch.Tensor:
            return tensors[name]

    expected = lavis_state(model)
    found = dict(LavisNamed(Source()).items())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_biased_projection_is_joined_and_split_again() -> None:
    q_bias, v_bias = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    bias = join_qkv_bias(q_bias, v_bias)
    assert bias.tolist() == [1, 2, 0, 0, 3, 4]
    assert [part.tolist() for part in split_qkv_bias("x", bias)] == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match=r"the.bias: its key part is not zero, and LAVIS's ViT has no key bias"):
        split_qkv_bias("the.bias", torch.tensor([1.0, 2.0, 0.0, 1e-9, 3.0, 4.0]))


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("Qformer.bert.embeddings.position_ids", True),
        ("Qformer.cls.predictions.transform.dense.weight", True),
        ("Qformer.bert.encoder.layer.11.output.dense.bias", True),
        ("Qformer.bert.encoder.layer.11.output_query.dense.bias", False),
        ("Qformer.bert.encoder.layer.11.intermediate_query.dense.bias", False),
        ("Qformer.bert.encoder.layer.11.attention.output.dense.bias", False),
        ("t5_proj.weight", False),
    ],
)
def test_only_the_text_branch_is_known_as_unused(name: str, unused: bool) -> None:
    assert is_unused(name) == unused
    if unused:
        assert from_lavis(name) is None


def test_strange_names_are_not_known() -> None:
    for name in ("t5_proj.weight", "visual_encoder.blocks.0.ls1.gamma", "Qformer.bert.pooler.dense.weight"):
        assert from_lavis(name) is None
    for name in ("qformer.embeddings.word_embeddings.weight", "vision_model.stranger"):
        with pytest.raises(KeyError):
            to_lavis(name)
    assert is_unused_of_vit("head.bias")
    assert not is_unused_of_vit("blocks.0.norm1.weight")
