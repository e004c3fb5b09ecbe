"""Settings that `artkv export` is given beside a checkpoint, and that its weights were not trained with."""

from collections.abc import Sequence

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def export(settings: Sequence[str], format: str) -> Make:
    """`artkv export` of a run with settings."""

    def make(place: Place) -> list[str]:
        output = {"adapter": "out.safetensors", "transformers": "out", "lavis": "out.pth"}[format]
        sets = [word for setting in settings for word in ("--set", setting)]
        return ["export", "--checkpoint", str(place.run()), "--format", format, "--output", output, *sets]

    return make


EXPORTS = Area(
    "artkv export, with settings that the weights were not trained with",
    [
        BadInput(
            f"{' and '.join(settings)}, to --format {format}",
            export(settings, format),
            ("run/checkpoints/step_00000009: was trained with", *says, "; set "),
        )
        for settings, format, says in [
            (
                ["kv_modulation.injection=decoupled"],
                "adapter",
                ('kv_modulation.injection="concat", now "decoupled"; the weights would not mean the same',),
            ),
            (
                ["kv_modulation.injection=film", "kv_modulation.num_prefix_tokens=8"],
                "transformers",
                ('kv_modulation.injection="concat", now "film"',),
            ),
            (["kv_modulation.num_prefix_tokens=3"], "adapter", ("kv_modulation.num_prefix_tokens=2, now 3",)),
            (["kv_modulation.enabled=false"], "adapter", ("kv_modulation.enabled=true, now false",)),
            (["kv_modulation.enabled=false"], "lavis", ("kv_modulation.enabled=true, now false",)),
            (["kv_modulation.gate=zero"], "adapter", ('kv_modulation.gate="none", now "zero"',)),
            (["kv_modulation.shared_across_layers=false"], "lavis", ("shared_across_layers=true, now false",)),
            (["trainable.lora.targets=[opt]"], "adapter", ('trainable.lora.targets=[], now ["opt"]',)),
            (["trainable.qformer_cross_attention=false"], "adapter", ("qformer_cross_attention=true, now false",)),
            (["trainable.qformer_cross_attention=false"], "transformers", ("qformer_cross_attention=true, now false",)),
            (["efficientnet.image_size=64"], "adapter", ("efficientnet.image_size=32, now 64",)),
            (["efficientnet.mean=[0, 0, 0]"], "transformers", ("efficientnet.mean=[0.485, 0.456, 0.406], now [0.0",)),
            (
                ["efficientnet.architecture=tf_efficientnet_b0"],
                "adapter",
                ('efficientnet.architecture="test_efficientnet", now "tf_efficientnet_b0"',),
            ),
            (
                ["efficientnet=null", "art_encoders=[{name: a}, {name: b}]"],
                "adapter",
                ("the art encoders ['test_efficientnet'], now ['a', 'b']",),
            ),
            (
                ["efficientnet=null", "art_encoders=[{architecture: test_efficientnet, image_size: 32, view: whole}]"],
                "adapter",
                ('art_encoders.0.view="centre", now "whole"',),
            ),
        ]
    ],
)
