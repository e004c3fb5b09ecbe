"""Both backends against LAVIS itself, with the library versions that it pins: `lavis_reference.py` says how it was run.

Letters in tensor names: B paintings, P prefix tokens, W the Q-Former's width, H heads, D head width.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GenerationConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from artkv.batch import PaintingFeatures, QuestionBatch
from artkv.config import ModelConfig
from artkv.distributed import single_process
from artkv.kv_modulation import KVPrefix
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.backbone.lavis_backend import LavisBlip2, open_lavis_backbone
from artkv.models.backbone.lavis_compatibility import shapes_only
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import open_blip2
from artkv.models.files.lavis_names import from_lavis
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2, ModelParts
from tests.models.lavis_reference import NEW_TOKENS, OPT, PREFIX_TOKENS, PROMPT, QFORMER, TEXTS, VIT, drawn, sampled

CPU = torch.device("cpu")
BACKENDS = ["transformers", "lavis"]


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parents[1] / "lavis_reference.npz"))


@pytest.fixture(scope="module")
def drawn_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> ModelConfig:
    """The reference's weights as a finetuned `.pth` of LAVIS, and OPT's folder."""
    text_config = OPTConfig(
        max_position_embeddings=128, word_embed_proj_dim=OPT["hidden_size"], pad_token_id=1, bos_token_id=2,
        eos_token_id=2, **OPT,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=VIT["width"], intermediate_size=VIT["mlp"], num_hidden_layers=VIT["blocks"],
            num_attention_heads=VIT["heads"], image_size=VIT["image"], patch_size=VIT["patch"],
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=QFORMER["width"], intermediate_size=QFORMER["mlp"], num_hidden_layers=QFORMER["layers"],
            num_attention_heads=QFORMER["heads"], encoder_hidden_size=VIT["width"],
        ).to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=QFORMER["queries"],
    )  # fmt: skip
    with shapes_only():
        shapes = {name: tuple(p.shape) for name, p in LavisBlip2(config, ln_vision_eps=1e-5).named_parameters()}
    state = {name: torch.from_numpy(drawn(name, shape)).float() for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("drawn")
    torch.save({"model": {n: t for n, t in state.items() if not n.startswith("opt_model.")}}, folder / "blip2.pth")
    text_config.save_pretrained(folder / "opt")
    tiny_tokenizer.save_pretrained(folder / "opt")
    opt = {n.removeprefix("opt_model.model."): t for n, t in state.items() if n.startswith("opt_model.")}
    torch.save(opt, folder / "opt" / "pytorch_model.bin")
    return ModelConfig(blip2=str(folder / "blip2.pth"), opt=str(folder / "opt"))


def load(backend: str, model: ModelConfig, dtype: torch.dtype) -> Blip2Backbone:
    files = open_blip2(model)
    if backend == "transformers":
        return open_transformers_backbone(files, dtype, CPU).load(single_process(CPU))
    return open_lavis_backbone(files, dtype, CPU).load(single_process(CPU))


def drawn_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(drawn(name, shape))


def worst_error(found: dict[str, Tensor], reference: dict[str, np.ndarray], prefix: str) -> float:
    """Largest difference of a gradient from the reference's, relative to its norm.

    To 0.1 where that is below: without a prefix a key bias shifts all scores of a query alike, and has rounding alone.
    """
    expected = {key.removeprefix(prefix): value for key, value in reference.items() if key.startswith(prefix)}
    assert found.keys() == {from_lavis(name) or name for name in expected}
    return max(
        np.abs(sampled(found[from_lavis(name) or name].numpy()) - value).max() / max(value[0], 0.1)
        for name, value in expected.items()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_loss_gradients_and_answers_are_lavis(
    backend: str, drawn_model: ModelConfig, reference: dict[str, np.ndarray]
) -> None:
    backbone = load(backend, drawn_model, torch.float32)
    trained = backbone.train_cross_attention()
    model = KVModulatedBlip2(ModelParts(backbone, None, None), trained)
    pixels = drawn_tensor("pixels", (2, 3, VIT["image"], VIT["image"])).float()
    features = backbone.encode_images(pixels).detach()
    # fp32, values up to 4; the worst seen are 1e-6 with transformers' attention and 0 with LAVIS's.
    np.testing.assert_allclose(features.numpy(), reference["image_features"], atol=1e-5, rtol=0)

    longest = max(map(len, TEXTS))
    rows = [[*ids, *[1] * (longest - len(ids))] for ids in TEXTS]
    input_ids = torch.tensor(rows)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in TEXTS])
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100  # LAVIS's prompt, of one token
    visual = model.visual_tokens(PaintingFeatures(features))
    places = (labels.flatten() != -100).nonzero().flatten()
    questions = QuestionBatch(input_ids, mask, labels, places, torch.tensor([0, 1]), torch.ones(2))
    result = model.answer_loss(visual, questions)
    loss = result.loss_sum / result.answer_tokens
    loss.backward()
    # fp32; the worst seen are 0 and 2.8e-6.
    assert abs(loss.item() - reference["loss"]) < 2e-6 * reference["loss"]
    gradients = {name: parameter.grad for name, parameter in trained.items()}
    assert worst_error(gradients, reference, "loss_gradient/") < 5e-5

    prompt = backbone.language_model.get_input_embeddings()(torch.tensor([PROMPT, PROMPT]))
    answers = backbone.language_model.generate(
        inputs_embeds=torch.cat([visual, prompt], dim=1),
        generation_config=GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=1),
    )
    assert answers.tolist() == reference["answers"].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_prefixed_qformer_is_lavis_with_longer_keys_and_values(
    backend: str, drawn_model: ModelConfig, reference: dict[str, np.ndarray]
) -> None:
    backbone = load(backend, drawn_model, torch.float64)
    trained = backbone.train_cross_attention()
    for parameter in trained.values():
        parameter.data = parameter.data.double()
    shape_BPW = (2, PREFIX_TOKENS, QFORMER["width"])
    prefix_BPW = {part: drawn_tensor(f"{part}_prefix", shape_BPW).requires_grad_() for part in ("key", "value")}
    k_BHPD, v_BHPD = (
        tokens.view(2, PREFIX_TOKENS, QFORMER["heads"], -1).transpose(1, 2) for tokens in prefix_BPW.values()
    )
    output = backbone.query_images(drawn_tensor("features", (2, 5, VIT["width"])), KVPrefix(k_BHPD, v_BHPD))
    (output * drawn_tensor("weights", tuple(output.shape))).sum().backward()
    # fp64; the worst seen are 4e-15 and 6e-15.
    np.testing.assert_allclose(output.detach().numpy(), reference["prefixed_output"], atol=1e-12, rtol=0)
    gradients = {name: tensor.grad for name, tensor in (trained | prefix_BPW).items()}
    assert worst_error(gradients, reference, "prefixed_gradient/") < 1e-12
