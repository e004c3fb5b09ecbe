"""`decoupled`: an attention of its own to the art features, added to the image's (IP-Adapter, arXiv 2308.06721).

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from artkv.kv_modulation.injections.concat import Concat, KVPrefix
from artkv.kv_modulation.modulation import (
    AttentionInputs,
    LayerAttention,
    attend_to_image,
    attention_probabilities,
    layer_attention,
    opened_gate,
)


@dataclass(frozen=True)
class DecoupledPrefix(KVPrefix):
    """`A(q, K_img, V_img) + w A(q, K_prefix, V_prefix)`; w is tanh(g), or 1 without a gate.

    So the image's attention keeps all of its mass, and at g = 0 the output is the stock layer's. Fields: as of
    `KVPrefix`.
    """

    def attend(self, inputs: AttentionInputs, layer: int) -> Tensor:
        """The two attentions of the same queries, added."""
        out_IHKX = attend_to_image(inputs)
        k_prefix_IHPX, v_prefix_IHPX = self.layer(layer, inputs.key_IHNX.dtype)
        if k_prefix_IHPX.shape[2] == 0:  # a softmax over nothing
            return out_IHKX
        art_IHKX = scaled_dot_product_attention(inputs.query_IHKX, k_prefix_IHPX, v_prefix_IHPX)
        return out_IHKX + (art_IHKX if self.gate is None else opened_gate(self.gate, layer) * art_IHKX)

    def record(self, inputs: AttentionInputs, layer: int) -> LayerAttention:
        """The weights on the image sum to 1, and those on the prefix to w beside it, whatever is in them.

        sizes: image_output and art_output, the root mean square of what each attention adds to the output.
        """
        k_prefix, v_prefix = self.layer(layer, inputs.key_IHNX.dtype)
        on_image = attention_probabilities(inputs.query_IHKX, inputs.key_IHNX, inputs.mask)
        on_prefix = attention_probabilities(inputs.query_IHKX, k_prefix, None)
        if self.gate is not None:
            on_prefix = opened_gate(self.gate.float(), layer) * on_prefix
        outputs = {"image_output": on_image @ inputs.value_IHNX.float(), "art_output": on_prefix @ v_prefix.float()}
        sizes = {name: out_IHKX.square().mean(dim=(-2, -1)).sqrt() for name, out_IHKX in outputs.items()}
        return layer_attention(inputs, on_prefix, on_image, k_prefix, v_prefix, sizes)


class Decoupled(Concat):
    """The same keys and values as `concat`, attended to by themselves."""

    shares_attention: ClassVar[bool] = False

    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> DecoupledPrefix:
        """The prefix of each painting; see `Injection.forward`."""
        k, v = self.kv_prefix_generator(features, use)
        return DecoupledPrefix(k, v, self.kv_prefix_gate)
