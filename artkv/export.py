"""Writes a checkpoint for others to load: the adapter alone, or a whole BLIP-2 with what was trained merged in."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import check_writable, told, write_whole
from artkv.kv_modulation import ModelSizes
from artkv.models.art_encoder import art_source
from artkv.models.files.blip2_files import Blip2Files, open_blip2
from artkv.models.files.blip2_writing import MergedSource, write_lavis_file, write_transformers_folder
from artkv.models.files.weight_files import frozen_hash, tensor_digest
from artkv.models.frozen_encoders import art_encoder_digests
from artkv.run_folder.adapter_file import KV_PREFIX, write_adapter
from artkv.run_folder.checkpoint import Checkpoint
from artkv.run_folder.layout import CHECKPOINTS
from artkv.run_folder.separation import how_within

Format = Literal["adapter", "transformers", "lavis"]
Part = Literal["vit", "opt"]

# Names of BLIP-2's parts that train; all others are the injection's.
_OF_BLIP2 = ("qformer.", "language_model.")


def export(
    checkpoint: Checkpoint, config: Config, format: Format, output: Path, leave_out: Sequence[Part] = ()
) -> list[Path]:
    """Writes a checkpoint in `format` and returns what it wrote; each file or folder is whole or absent.

    adapter: one safetensors file. transformers: a folder for `Blip2ForConditionalGeneration.from_pretrained`.
    lavis: a `.pth` for `Blip2OPT` of LAVIS; `leave_out` leaves parts to be loaded from elsewhere.
    The prefix generator goes beside the latter two, as an adapter file on the exported model.

    Args:
        config: the checkpoint's, perhaps with paths changed; what the weights depend on must be as it was.

    Raises:
        UserError: if the checkpoint or the weights that it was trained on cannot be read or do not belong together,
            or the output is there already.
    """
    checkpoint.check_same_model(config)
    if leave_out and format != "lavis":
        raise UserError(f"--leave-out {' '.join(leave_out)}: is for --format lavis; leave it out")
    suffix = {"adapter": ".safetensors", "transformers": "", "lavis": ".pth"}[format]
    if suffix and output.suffix != suffix:
        raise UserError(f"--output {output}: is a {suffix} file with --format {format}; give a name that ends so")
    prefix_file = output if suffix == "" else output.with_suffix(f".{KV_PREFIX}")  # beside a LAVIS file
    for path in [output, *([prefix_file] if format == "lavis" else [])]:
        if os.path.lexists(path):
            raise UserError(f"--output {output}: {path} is there already; remove it or give another name")
        check_writable(path, f"--output {output}")
    if (how := how_within(output, checkpoint.run_dir / CHECKPOINTS)) is not None:
        where = f"{how} {checkpoint.run_dir / CHECKPOINTS}"
        raise UserError(f"--output {output}: {where}, of which a training removes the older ones; give another place")
    trained = checkpoint.adapter()
    if format == "adapter":
        if (config.model, config.used_encoders) != (checkpoint.config.model, checkpoint.config.used_encoders):
            _Merging(checkpoint, config, trained)  # what its metadata will name is what it was trained on
        _write(output, lambda path: write_adapter(path, trained, config, checkpoint.frozen_hash, checkpoint.step))
        return [output]

    exporting = _Merging(checkpoint, config, trained)
    if format == "transformers":

        def write_folder(folder: Path) -> None:
            folder.mkdir()
            write_transformers_folder(exporting.files, exporting.merged, folder)
            if exporting.prefix:
                exporting.write_prefix(folder / KV_PREFIX, {"blip2": "./"})

        _write(output, write_folder)
        return [output]

    if "opt" in leave_out and any(name.startswith("language_model.") for name in exporting.merged.merged):
        raise UserError("--leave-out opt: the checkpoint trained LoRA in it; leave the option out")
    model = {
        "blip2": f"./{output.name}",
        "opt": config.model.opt or config.model.blip2,
        "vit": str(config.model.vit) if "vit" in leave_out and config.model.vit else None,
    }
    _write(output, lambda path: write_lavis_file(exporting.files, exporting.merged, path, leave_out))
    if not exporting.prefix:
        return [output]
    try:
        _write(prefix_file, lambda path: exporting.write_prefix(path, model))
    except BaseException:
        output.unlink()  # neither without the other
        raise
    return [output, prefix_file]


def _write(output: Path, write: Callable[[Path], object]) -> None:
    with told(f"--output {output}", "make room there, or give another place"):
        try:
            write_whole(output, write)
        except RuntimeError as error:
            # torch.save has its own words for a disk without room: that it is where it did not expect to be.
            if "inline_container" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output)) from None
            raise


class _Merging:
    """A checkpoint and the BLIP-2 that it was trained on, opened and found to belong together.

    merged: BLIP-2's tensors with what was trained. prefix: the trainables that are none of BLIP-2's.
    """

    def __init__(self, checkpoint: Checkpoint, config: Config, trained: dict[str, Tensor]) -> None:
        self.files: Blip2Files = open_blip2(config.model)
        self.prefix = {name: tensor for name, tensor in trained.items() if not name.startswith(_OF_BLIP2)}
        self._config = config
        self._step = checkpoint.step
        digests = self.files.weight_digests()
        if config.kv_modulation.enabled:
            digests |= art_encoder_digests(config)
        frozen = {name: digest for name, digest in digests.items() if name not in trained}
        checkpoint.check_frozen_weights(frozen_hash(frozen))
        lora = config.trainable.lora
        blip2 = {name: tensor for name, tensor in trained.items() if name not in self.prefix}
        self.merged = MergedSource(self.files, blip2, lora.alpha / lora.rank)
        # Of the exported model, all of which is frozen beside the prefix.
        self._digests = digests | {name: tensor_digest(self.merged.tensor(name)) for name in self.merged.merged}

    def write_prefix(self, path: Path, model: dict[str, Any]) -> None:
        """Writes the injection as an adapter on the exported model; `model` is where that is.

        `kv_modulation`, `sources` and `sizes` in its metadata are what `make_injection` makes it of.
        """
        tree = self._config.model_dump(mode="json")
        tree["model"] |= {"opt": None, "vit": None} | model
        tree["trainable"] = {"qformer_cross_attention": False, "lora": {"targets": []}}
        qformer = self.files.config.qformer_config
        sizes = ModelSizes(
            width=qformer.hidden_size,
            heads=qformer.num_attention_heads,
            layers=-(-qformer.num_hidden_layers // qformer.cross_attention_frequency),
            language_width=self.files.config.text_config.hidden_size,
        )
        sources = [asdict(art_source(encoder)) for encoder in self._config.used_encoders]
        config = Config.model_validate(tree)
        more = {"sources": sources, "sizes": asdict(sizes)}
        write_adapter(path, self.prefix, config, frozen_hash(self._digests), self._step, more)
