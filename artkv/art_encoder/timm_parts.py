"""What timm gives to train the art encoder: network, picture transforms, mixing, averaging, optimizer, schedule.

Everything here is a factory over plain values; the loop that uses them is in artkv/art_encoder/training.py.

Letters in shapes are explained in `artkv.batch`; O are the styles.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.models import EfficientNet
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from artkv.errors import UserError
from artkv.models.art_encoder import load_weights
from artkv.models.timm_networks import create_network

PictureTransform = Callable[[Image.Image], Tensor]
TargetMixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MovingAverage = ModelEmaV3
Schedule = CosineLRScheduler


def create_classifier(
    architecture: str, num_classes: int, drop_rate: float, drop_path_rate: float, initial_checkpoint: Path | None = None
) -> EfficientNet:
    """An EfficientNet that classifies into `num_classes` styles, in float32 on the CPU.

    With `initial_checkpoint` (ImageNet weights, say, in either layout) all but the classifier starts from there.
    Raises UserError where the name or the checkpoint does not fit.
    """
    model = create_network(architecture, num_classes, drop_rate, drop_path_rate)
    if not isinstance(model, EfficientNet):
        raise UserError(
            f"efficientnet.architecture: {architecture!r} is a {type(model).__name__}, not an EfficientNet; "
            "use for instance efficientnet_b3"
        )
    # timm draws the classifier from +-1/sqrt(classes), made for ImageNet's 1000: with 6 styles the first loss of
    # EfficientNet-B0 is 3.6 where ln(6) = 1.8 is chance, and the first steps go into unlearning it
    nn.init.normal_(model.classifier.weight, std=0.01)
    nn.init.zeros_(model.classifier.bias)
    if initial_checkpoint is not None:
        load_weights(model, initial_checkpoint, architecture)
    else:
        _start_residual_blocks_as_identity(model)
    return model


def _start_residual_blocks_as_identity(model: EfficientNet) -> None:
    """Sets the last BatchNorm weight of each residual branch to 0 (Goyal et al. 2017, section 5.1).

    From random weights it is what makes short trainings work: EfficientNet-B3 at 64 pixels on 648 pictures of six
    styles, 120 steps of 32, reached 0.98 on held-out pictures with it and 0.87 without.
    """
    for block in model.modules():
        if getattr(block, "has_skip", False):
            last_norm = block.bn3 if hasattr(block, "bn3") else block.bn2
            nn.init.zeros_(last_norm.weight)  # type: ignore[arg-type, union-attr]


def training_transform(
    image_size: int, smallest_crop: float, horizontal_flip: float, color_jitter: float
) -> PictureTransform:
    """The augmentation of a picture: a random crop of at least `smallest_crop` of its area, flip and colour.

    Gives (3, E, E) float32, ImageNet-normalised. Brushwork is a mark of style: crops smaller than a third or so
    show it at a scale that the encoder never meets in use.
    """
    return create_transform(
        input_size=image_size,
        is_training=True,
        scale=(smallest_crop, 1.0),
        hflip=horizontal_flip,
        color_jitter=color_jitter,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def evaluation_transform(image_size: int) -> PictureTransform:
    """The view that the encoder gets in use: shorter side to E (bicubic), centre crop, ImageNet-normalised.

    Gives (3, E, E) float32. It must stay equal to the EfficientNet's view in artkv.datasets: an encoder that is
    validated on another view than it serves has scores that promise nothing.
    """
    return create_transform(
        input_size=image_size,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
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
