"""The settings of how art features get into BLIP-2; see docs/injection.md."""

from typing import Literal

from pydantic import Field

from artkv.config.section import Bool, PositiveInt, Section


class KVModulationConfig(Section):
    """How the art features get into BLIP-2: by default as key/value prefixes of the Q-Former's cross-attention."""

    enabled: Bool = Field(default=True, description="true, or false for the control without a prefix")
    injection: Literal["concat", "decoupled", "film", "prompt"] = Field(
        default="concat",
        description="concat (keys and values beside the picture's), decoupled (an attention of their own), film "
        "(scales and shifts) or prompt (tokens that OPT reads)",
    )
    num_prefix_tokens: PositiveInt = Field(default=8, le=4096, description="a whole number of 1 to 4096")
    shared_across_layers: Bool = Field(
        default=True, description="true (one K/V projection for all layers) or false (one for each layer)"
    )
    gate: Literal["none", "zero"] = Field(
        default="none", description="none, or zero: the prefix starts switched off and fades in"
    )
    gate_per: Literal["model", "layer", "head"] = Field(
        default="model", description="model (one gate), layer (one for each layer) or head (one for each of its heads)"
    )
    film: Literal["keys_values", "queries"] = Field(
        default="keys_values",
        description="keys_values (the picture's keys and values in each layer) or queries (the query tokens)",
    )

    def check_nothing_is_ignored(self) -> None:
        """Raises `ValueError` for a setting that has no meaning with the others."""

        def refuse(key: str, reason: str) -> None:
            value, default = getattr(self, key), KVModulationConfig.model_fields[key].default
            if value != default:
                written = str(value).lower() if isinstance(value, bool) else value
                raise ValueError(f"kv_modulation.{key} = {written} {reason}; leave it out")

        if self.injection != "film":
            refuse("film", f"is for kv_modulation.injection: film, not {self.injection}")
        else:
            refuse("num_prefix_tokens", "counts tokens, and kv_modulation.injection: film makes none")
        if self.injection == "prompt":
            refuse("shared_across_layers", "is for ways that change layers, not for kv_modulation.injection: prompt")
            refuse(
                "gate",
                "starts as stock BLIP-2, and kv_modulation.injection: prompt cannot: OPT reads tokens of zero too",
            )
        elif self.injection == "film" and self.film == "queries":
            for key in ("shared_across_layers", "gate_per"):
                refuse(key, "is for ways that change layers, not for kv_modulation.film: queries")
        if self.gate == "none":
            refuse("gate_per", "is for kv_modulation.gate: zero, and the gate is none")
