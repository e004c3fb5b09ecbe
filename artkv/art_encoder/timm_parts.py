"""What timm gives to train the art encoder: network, picture transforms, mixing, averaging, optimizer, schedule.

Everything here is a factory over plain values; the loop that uses them is in artkv/art_encoder/training.py.

Letters in shapes are explained in `artkv.batch`; O are the styles, or the classes of all heads.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import artkv.models.timm_networks  # noqa: F401  (imports timm, and of it less than timm would)

# isort: split
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.mixup import mixup_target
from timm.layers import convert_sync_batchnorm
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from artkv.errors import UserError
from artkv.models.art_encoder import check_whole_patches, load_weights
from artkv.models.files.efficientnet_files import recorded_settings
from artkv.models.timm_networks import accepted_options, create_network, first_line, normalisation

PictureTransform = Callable[[Image.Image], Tensor]
TargetMixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MovingAverage = ModelEmaV3
Schedule = CosineLRScheduler


def create_classifier(
    architecture: str,
    num_classes: int,
    drop_rate: float,
    drop_path_rate: float,
    image_size: int | None = None,
    initial_checkpoint: Path | None = None,
) -> Any:
    """A network of timm that classifies into `num_classes` classes, in float32 on the CPU.

    image_size: of the pictures, for the architectures that are made for one size; None: their own.
    With `initial_checkpoint` (ImageNet weights, say, in timm's or an EfficientNet's in torchvision's layout) all but
    the classifier starts from there. Raises UserError where the name, the size or the checkpoint does not fit.
    """
    made_for = image_size
    is_resized = initial_checkpoint is not None and "img_size" in accepted_options(architecture)
    if is_resized and initial_checkpoint is not None:
        recorded = recorded_settings(initial_checkpoint).get("image_size", "")
        made_for = int(recorded) if recorded.isdecimal() and len(recorded) < 6 else None
    model = create_network(architecture, num_classes, drop_rate, drop_path_rate, made_for)
    if is_resized and not hasattr(model, "set_input_size"):
        is_resized = False
        model = create_network(architecture, num_classes, drop_rate, drop_path_rate, image_size)
    if image_size is not None:
        check_whole_patches(model, architecture, image_size, f"--image-size {image_size}")
    # timm draws the classifier from +-1/sqrt(classes), made for ImageNet's 1000: with 6 styles the first loss of
    # EfficientNet-B0 is 3.6 where ln(6) = 1.8 is chance, and the first steps go into unlearning it
    for layer in _classifier_layers(model, num_classes):
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if initial_checkpoint is None:
        _start_residual_blocks_as_identity(model)
        return model
    load_weights(model, initial_checkpoint, architecture, "")
    if is_resized and image_size is not None:
        try:
            model.set_input_size(img_size=(image_size, image_size))  # position embeddings are resampled
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise _wrong_size(architecture, image_size, error) from None
    return model


def has_unused_parameters(model: Any, architecture: str, image_size: int, num_classes: int) -> bool:
    """Tries a model on one black picture, forward and back; whether some parameters have no part in the result.

    Raises UserError where it cannot take such pictures, or does not classify.
    """
    model.eval()
    try:
        logits = model(torch.zeros(1, 3, image_size, image_size))
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            raise TypeError(f"it gives no {num_classes} numbers for a picture")
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        raise _wrong_size(architecture, image_size, error) from None
    logits.sum().backward()
    unused = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    model.zero_grad(set_to_none=True)
    model.train()
    return unused


def _wrong_size(architecture: str, image_size: int, error: Exception) -> UserError:
    return UserError(
        f"--architecture {architecture}: cannot take pictures of --image-size {image_size} ({first_line(error)}); give "
        "another size, which for a ViT is a multiple of its patches' and windows', or another architecture"
    )


def rates_without_effect(architecture: str, rates: Mapping[str, float]) -> list[str]:
    """Which of these rates, by `create_network`'s names, are above 0 though the architecture has no use for them."""
    return [name for name, rate in rates.items() if rate and name not in accepted_options(architecture)]


def with_synchronised_batchnorm(model: nn.Module) -> nn.Module:
    """The model, whose BatchNorms have been replaced by PyTorch's for several GPUs."""
    return convert_sync_batchnorm(model)


def _classifier_layers(model: Any, num_classes: int) -> list[Any]:
    """The last layers of the classifier, or of each where it has several."""
    classifiers = model.get_classifier()
    parts = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [layer for layer in layers if layer.weight.shape[0] == num_classes]


def _start_residual_blocks_as_identity(model: nn.Module) -> None:
    """Sets the last BatchNorm weight of each residual branch to 0 (Goyal et al. 2017, section 5.1).

    From random weights it is what makes short trainings work: EfficientNet-B3 at 64 pixels on 648 pictures of six
    styles, 120 steps of 32, reached 0.98 on held-out pictures with it and 0.87 without. Of an EfficientNet's blocks and
    those built like them; other architectures of timm start as timm has them.
    """
    for block in model.modules():
        if getattr(block, "has_skip", False):
            last_norm = getattr(block, "bn3", None) or getattr(block, "bn2", None)
            weight = getattr(last_norm, "weight", None)
            if isinstance(weight, Tensor):
                nn.init.zeros_(weight)


def training_transform(
    architecture: str, image_size: int, smallest_crop: float, horizontal_flip: float, color_jitter: float
) -> PictureTransform:
    """The augmentation of a picture: a random crop of at least `smallest_crop` of its area, flip and colour.

    Gives (3, E, E) float32, normalised as the architecture wants it. Brushwork is a mark of style: crops smaller
    than a third or so show it at a scale that the encoder never meets in use.
    """
    mean, std = normalisation(architecture)
    return create_transform(
        input_size=image_size,
        is_training=True,
        scale=(smallest_crop, 1.0),
        hflip=horizontal_flip,
        color_jitter=color_jitter,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )


def evaluation_transform(architecture: str, image_size: int) -> PictureTransform:
    """The view that the encoder gets in use: shorter side to E (bicubic), centre crop, normalised.

    Gives (3, E, E) float32. It must stay equal to the EfficientNet's view in artkv.datasets: an encoder that is
    validated on another view than it serves has scores that promise nothing.
    """
    mean, std = normalisation(architecture)
    return create_transform(
        input_size=image_size,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=mean,
        std=std,
    )


def target_mixer(
    num_classes: int, label_smoothing: float, mixup: float, cutmix: float, mix_probability: float
) -> TargetMixer:
    """Turns pictures (I, 3, E, E) and styles (I,) int64 into mixed pictures and soft targets (I, O) float32.

    `mixup` and `cutmix` are the alphas of their Beta distributions, 0 for never; a batch is mixed with probability
    `mix_probability`. Random numbers come from NumPy's global generator. The batch must be even where
    either is above 0.
    """
    if mixup == 0 and cutmix == 0:

        def smooth_only(pixels: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
            return pixels, mixup_target(styles, num_classes, smoothing=label_smoothing)

        return smooth_only
    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=mix_probability,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


def masked_target_mixer(
    class_counts: Sequence[int], label_smoothing: float, mixup: float, cutmix: float, mix_probability: float
) -> TargetMixer:
    """As `target_mixer`, of labels (I, heads), -1 where there is none, to targets (I, O) of all heads side by side.

    The target of a missing label is 0 everywhere. Where it is mixed with another, the other's share is left.
    """
    mixer = Mixup(mixup, cutmix, prob=mix_probability, label_smoothing=0.0) if mixup or cutmix else None

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = [
            mixup_target(column.clamp(min=0), count, smoothing=label_smoothing) * (column >= 0)[:, None]
            for count, column in zip(class_counts, labels.unbind(1), strict=True)
        ]
        if mixer is None:
            return pixels, torch.cat(targets, dim=1)
        # which picture is mixed into which, and by how much: as the label of picture number i is mixed, where it is i
        mixer.num_classes = len(pixels)
        pixels, shares_II = mixer(pixels, torch.arange(len(pixels), device=pixels.device))
        return pixels, shares_II @ torch.cat(targets, dim=1)

    return mix


def soft_target_loss() -> nn.Module:
    """The mean cross-entropy of logits (I, O) against soft targets (I, O)."""
    return SoftTargetCrossEntropy()


def averaged_model(model: nn.Module, decay: float) -> ModelEmaV3:
    """The exponential moving average of a model's weights and BatchNorm statistics.

    The decay warms up as 1 - steps^-0.75 until it reaches `decay`: after 100 steps the average spans some 30 steps
    and not the 5000 of a decay of 0.9998, in which the random start would still weigh 98%.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=0.75)


def create_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW without weight decay on biases and BatchNorm."""
    return create_optimizer_v2(model, opt="adamw", lr=learning_rate, weight_decay=weight_decay, filter_bias_and_bn=True)


def create_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int, minimum_learning_rate: float
) -> CosineLRScheduler:
    """Linear warm-up from 0, then half a cosine down to `minimum_learning_rate`: `step_update(steps done)`.

    The rate is a function of the number of steps alone, so there is nothing to save or restore.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, total_steps - warmup_steps),
        lr_min=minimum_learning_rate,
        warmup_t=warmup_steps,
        warmup_prefix=True,
        t_in_epochs=False,
    )
