"""LAVIS's checkpoints of BLIP-2 with OPT, read under transformers' names without LAVIS.

A `.pth` of LAVIS holds what was trained: query tokens, ln_vision, Q-Former and opt_proj, and the ViT where it was
finetuned. The rest is where LAVIS has it from: the ViT in `eva_vit_g.pth`, OPT in a transformers folder. None of them
holds a config: sizes follow from shapes, the rest is constant in LAVIS.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from artkv.errors import UserError
from artkv.models.files.lavis_names import from_lavis, is_unused, is_unused_of_vit, join_qkv_bias, to_lavis
from artkv.models.files.model_configs import check_sizes
from artkv.models.files.pickled_files import plain_tensors, read_pickle
from artkv.models.files.weight_files import open_weights
from artkv.reading import parse_json

# `create_eva_vit_g` in LAVIS: heads of 88, the first 39 of the file's 40 blocks.
_VIT_HEAD_WIDTH = 88
_VIT_BLOCKS_USED = 39
# `Blip2Base` in LAVIS: heads of 64 as bert-base, torch's default eps for ln_vision (1e-6 in the ViT's blocks).
_QFORMER_HEAD_WIDTH = 64
LN_VISION_EPS = 1e-5
# `BlipImageBaseProcessor` in LAVIS: CLIP's mean and deviation.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Beside LAVIS's `model` in a file of `artkv export`: settings that differ from LAVIS's constants, as JSON.
SETTINGS = "artkv"

_EMBEDDING = "language_model.model.decoder.embed_tokens.weight"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "vision_model.embeddings.position_embedding"
_FINAL_VIT_NORM = "vision_model.post_layernorm."

_Readers = dict[str, Callable[[], Tensor]]


class LavisSource:
    """A LAVIS `.pth` with its ViT and OPT as one `TensorSource` of transformers' names.

    Tensors stay memory-mapped; the ViT's fused biases are put together when asked for, and its position
    embedding is resized then if the `.pth` was trained at another size, as LAVIS does. What the `.pth` holds
    goes before the same in the other two, as in LAVIS.

    files: all that weights come from.
    settings: what `artkv export` wrote into the `.pth`; empty for LAVIS's own.

    Raises:
        UserError: if a file is not there, is superfluous or of another kind, or holds an unknown tensor.
    """

    def __init__(self, blip2: Path, vit: Path | None, opt: Path) -> None:
        checkpoint = read_pickle(blip2, "model.blip2")
        self.files = [blip2]
        self.settings: dict[str, Any] = _settings(checkpoint, blip2)
        own = _readers(_tensors(checkpoint, blip2, "model.blip2"), blip2, is_unused)
        own_vit = {name for name in own if _is_of_vit(name)}
        base: _Readers = {}
        if vit is not None:
            base = _vit_readers(vit)
            if base.keys() <= own_vit:
                raise UserError(f"model.vit = {vit}: {blip2} holds a whole ViT itself; leave model.vit out")
            self.files.append(vit)
        elif not own_vit:
            raise UserError(
                f"model.vit is not set, and {blip2} holds no ViT; give the eva_vit_g.pth that LAVIS loads beside it"
            )
        if _EMBEDDING not in own:
            opt_source = open_weights(opt, "model.opt")
            self.files += opt_source.files
            base |= {_of_opt(name): partial(opt_source.tensor, name) for name in _opt_names(opt_source.names())}
        self._readers = base | own
        size = _trained_image_size(checkpoint)
        if size is not None and _POSITIONS in base and _POSITIONS not in own and _PATCHES in self._readers:
            side = size // self.tensor(_PATCHES).shape[-1]
            self._readers[_POSITIONS] = partial(_resized_positions, base[_POSITIONS], side)

    def names(self) -> list[str]:
        """All tensor names, transformers'."""
        return list(self._readers)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, memory-mapped unless it is put together or resized."""
        return self._readers[name]()

    @staticmethod
    def shown(name: str) -> str:
        """A name as it stands in LAVIS's files, for messages."""
        return " and ".join(to_lavis(name))


def lavis_config(source: LavisSource, text_config: Any) -> Blip2Config:
    """The config of transformers' BLIP-2 for the weights of `source`; `text_config` is OPT's.

    Raises:
        UserError: if a tensor that tells a size is missing, or a width is none of EVA's or BERT's.
    """
    vision_saved = source.settings.get("vision_config", {})
    qformer_saved = source.settings.get("qformer_config", {})
    vit_width = _shape(source, _POSITIONS)[-1]
    patch = _shape(source, _PATCHES)[-1]
    side = round((_shape(source, _POSITIONS)[1] - 1) ** 0.5)
    query_shape = _shape(source, "query_tokens")
    vision = {
        "num_attention_heads": vit_width / _VIT_HEAD_WIDTH,
        **vision_saved,
        "hidden_size": vit_width,
        "intermediate_size": _shape(source, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(_layers(source, "vision_model.encoder.layers.#.layer_norm1.weight")),
        "image_size": side * patch,
        "patch_size": patch,
    }
    width = query_shape[-1]
    num_layers = len(_layers(source, "qformer.encoder.layer.#.attention.attention.query.weight"))
    crossing = _layers(source, "qformer.encoder.layer.#.crossattention.attention.query.weight")
    frequency = crossing[1] if len(crossing) > 1 else max(num_layers, 1)
    if crossing != list(range(0, num_layers, frequency)):
        raise UserError(
            f"{source.files[0]}: Q-Former layers {crossing} have cross-attention, expected every second of {num_layers}"
        )
    qformer = {
        "num_attention_heads": width / _QFORMER_HEAD_WIDTH,
        **qformer_saved,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "intermediate_size": _shape(source, "qformer.encoder.layer.0.intermediate_query.dense.weight")[0],
        "encoder_hidden_size": vit_width,
        "cross_attention_frequency": frequency,
    }
    for part, sizes, head_width in (("ViT", vision, _VIT_HEAD_WIDTH), ("Q-Former", qformer, _QFORMER_HEAD_WIDTH)):
        if sizes["num_attention_heads"] % 1:
            raise UserError(
                f"{source.files[0]}: its {part} is {sizes['hidden_size']} wide, LAVIS's has heads of {head_width}; "
                "give a BLIP-2 of LAVIS with EVA ViT-g"
            )
        sizes["num_attention_heads"] = int(sizes["num_attention_heads"])
    text = text_config.to_dict()
    text.pop("_name_or_path", None)
    text["vocab_size"] = _shape(source, _EMBEDDING)[0]  # padded in some files beyond what OPT's config says
    return Blip2Config(
        vision_config=Blip2VisionConfig(**vision).to_dict(),
        qformer_config=Blip2QFormerConfig(**qformer).to_dict(),
        text_config=text,
        num_query_tokens=query_shape[1],
    )


def _settings(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(checkpoint.get(SETTINGS, "{}"))
        if not all(isinstance(part, dict) for part in (tree, *tree.values())):
            raise TypeError
        check_sizes(tree, path, "export it again")
        return dict(tree)
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: its {SETTINGS!r} is not the JSON that artkv export writes; export it again") from None


def _tensors(checkpoint: Mapping[str, Any], path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under LAVIS's `model`, or all there is."""
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        others = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
        raise UserError(
            f"{setting} = {path}: holds no state dict, neither under 'model' nor by itself (there is {others[:5]}); "
            "give a checkpoint that LAVIS wrote"
        )
    return plain_tensors(state, path)


def _readers(tensors: Mapping[str, Tensor], path: Path, is_known: Callable[[str], bool]) -> _Readers:
    """Readers by transformers' name of the tensors under LAVIS's, all of which must be known."""
    found: dict[str, list[str]] = {}
    strange = []
    for name in tensors:
        if (original := from_lavis(name)) is not None:
            found.setdefault(original, []).append(name)
        elif not is_known(name):
            strange.append(name)
    readers: _Readers = {}
    for original, names in found.items():
        if original.endswith(".self_attn.qkv.bias"):
            q_name, v_name = to_lavis(original)
            if len(names) == 1:
                lacking = v_name if names == [q_name] else q_name
                raise UserError(f"{path}: holds {names[0]} without its counterpart, {lacking}; fetch it again")
            readers[original] = partial(join_qkv_bias, tensors[q_name], tensors[v_name])
        else:
            readers[original] = partial(tensors.__getitem__, names[0])
    if strange or not readers:
        listed = f"{len(strange)} unexpected: {', '.join(sorted(strange)[:5])}" if strange else "nothing of BLIP-2"
        raise UserError(
            f"{path}: holds {listed}; give the checkpoint of a Blip2OPT that LAVIS wrote, such as "
            "blip2_pretrained_opt2.7b.pth"
        )
    return readers


def _vit_readers(path: Path) -> _Readers:
    """Readers of `eva_vit_g.pth`, whose names lack LAVIS's `visual_encoder.`, without what LAVIS leaves out of it."""
    tensors = _tensors(read_pickle(path, "model.vit"), path, "model.vit")
    if "pos_embed" not in tensors or "blocks.0.attn.qkv.weight" not in tensors:
        raise UserError(
            f"model.vit = {path}: is no EVA ViT of LAVIS (it holds {', '.join(sorted(tensors)[:3])}...); "
            "give eva_vit_g.pth"
        )
    used = {}
    for name, tensor in tensors.items():
        block = re.match(r"blocks\.([0-9]+)\.", name)
        if not (is_unused_of_vit(name) or (block and int(block[1]) >= _VIT_BLOCKS_USED)):
            used[f"visual_encoder.{name}"] = tensor
    return _readers(used, path, lambda name: False)


def _opt_names(names: Sequence[str]) -> list[str]:
    """OPT's among the names of its own folder, or of a whole BLIP-2's."""
    return [name for name in names if name.startswith("language_model.")] or list(names)


def _of_opt(name: str) -> str:
    """BLIP-2's name of a tensor of OPT. The published folders of OPT lack the `model.` of the whole model."""
    whole = f"model.{name}" if name.startswith("decoder.") else name
    return whole if whole.startswith("language_model.") else f"language_model.{whole}"


def _is_of_vit(name: str) -> bool:
    return name.startswith("vision_model.") and not name.startswith(_FINAL_VIT_NORM)


def _trained_image_size(checkpoint: Mapping[str, Any]) -> int | None:
    """The picture's side that LAVIS's own training wrote into its checkpoint's config, if it did."""
    try:
        size = checkpoint["config"]["model"]["image_size"]
    except (KeyError, TypeError):
        return None
    return size if isinstance(size, int) else None


def _resized_positions(read: Callable[[], Tensor], side: int) -> Tensor:
    """The position embedding (1, 1 + side^2, V) for another number of patches, as LAVIS's `interpolate_pos_embed`."""
    positions = read()
    old_side = round((positions.shape[1] - 1) ** 0.5)
    if old_side == side:
        return positions
    positions = positions.float()
    width = positions.shape[-1]
    grid = positions[:, 1:].reshape(1, old_side, old_side, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _layers(source: LavisSource, pattern: str) -> Sequence[int]:
    """Numbers of the layers that have a tensor like `pattern`, with `#` for the number."""
    compiled = re.compile(re.escape(pattern).replace(r"\#", "([0-9]+)"))
    return sorted(int(match[1]) for name in source.names() if (match := compiled.fullmatch(name)))


def _shape(source: LavisSource, name: str) -> tuple[int, ...]:
    if name not in source.names():
        raise UserError(
            f"{source.files[0]}: holds no {source.shown(name)}; give the checkpoint of a Blip2OPT that LAVIS wrote"
        )
    return tuple(source.tensor(name).shape)
