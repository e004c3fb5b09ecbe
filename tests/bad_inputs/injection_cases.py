"""`kv_modulation` with what no way of injecting art features is, or has a meaning for."""

from tests.bad_inputs.cases import Area, BadInput, Make, Place

# The world's config sets num_prefix_tokens to 2, which film refuses first.
FILM = "injection: film, num_prefix_tokens: 8"


def together(settings: str) -> Make:
    """`artkv check` of the world's config with this section of settings in place of its own."""

    def arguments(place: Place) -> list[str]:
        text = (place.world / "config.yaml").read_text(encoding="utf-8")
        text = text.replace("kv_modulation: {num_prefix_tokens: 2}", f"kv_modulation: {{{settings}}}")
        assert settings in text
        return ["check", "--config", str(place.write("my.yaml", text))]

    return arguments


def refused(settings: str, *parts: str) -> BadInput:
    return BadInput(f"`kv_modulation: {{{settings}}}`", together(settings), tuple(parts))


INJECTION = Area(
    "How art features are injected",
    [
        refused("injection: concatt", "kv_modulation.injection = 'concatt'", "'film' or 'prompt'"),
        refused("injection: FiLM", "kv_modulation.injection = 'FiLM'", "film (scales and shifts)"),
        refused("injection: null", "kv_modulation.injection = None", "give concat"),
        refused("injection: [concat, film]", "kv_modulation.injection = ", "give concat"),
        refused("injection: true", "kv_modulation.injection = True", "give concat"),
        refused("injections: film", "kv_modulation.injections = 'film': unknown key; did you mean 'injection'?"),
        refused(
            "injection: film, num_prefix_tokens: 4",
            "kv_modulation.num_prefix_tokens = 4 counts tokens", "injection: film makes none; leave it out",
        ),
        refused(
            "injection: concat, film: queries",
            "kv_modulation.film = queries is for kv_modulation.injection: film, not concat; leave it out",
        ),
        refused("injection: prompt, film: queries", "kv_modulation.film = queries", "not prompt; leave it out"),
        refused(f"{FILM}, film: keys", "kv_modulation.film = 'keys'", "give keys_values"),
        refused(
            f"{FILM}, film: queries, shared_across_layers: false",
            "kv_modulation.shared_across_layers = false", "not for kv_modulation.film: queries; leave it out",
        ),
        refused(
            f"{FILM}, film: queries, gate: zero, gate_per: head",
            "kv_modulation.gate_per = head", "not for kv_modulation.film: queries; leave it out",
        ),
        refused(
            "injection: prompt, gate: zero",
            "kv_modulation.gate = zero", "kv_modulation.injection: prompt cannot", "leave it out",
        ),
        refused(
            "injection: prompt, shared_across_layers: false",
            "kv_modulation.shared_across_layers = false", "not for kv_modulation.injection: prompt; leave it out",
        ),
        refused(
            "gate_per: head", "kv_modulation.gate_per = head is for kv_modulation.gate: zero", "leave it out"
        ),
        refused("gate: none, gate_per: layer", "kv_modulation.gate_per = layer", "the gate is none; leave it out"),
        refused("gate: zero, gate_per: heads", "kv_modulation.gate_per = 'heads'", "give model (one gate)"),
        refused("gate: zero_per_layer", "kv_modulation.gate = 'zero_per_layer'", "give none, or zero"),
        BadInput(
            "more tokens of `injection: prompt` than OPT has positions for beside a question",
            lambda place: [
                "check", *place.config("kv_modulation.injection=prompt", "kv_modulation.num_prefix_tokens=120"),
            ],
            (
                "kv_modulation.num_prefix_tokens = 120: with injection prompt adds 120 tokens to the picture's, and",
                "the language model has positions for 11",
                "of them; lower it",
            ),
        ),
        BadInput(
            "the same, with all positions taken by the prefix, in a plan",
            lambda place: [
                "plan", "--gpu-memory", "8GiB", "--text-tokens", "4",
                *place.config("kv_modulation.injection=prompt", "kv_modulation.num_prefix_tokens=4000"),
            ],
            ("kv_modulation.num_prefix_tokens = 4,000: with injection prompt adds 4,000 tokens", "lower it"),
        ),
    ],
)  # fmt: skip
