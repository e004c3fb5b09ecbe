"""`art_encoders` and `efficientnet` with what is no encoder, or none that can be read so."""

from pathlib import Path

import timm
from safetensors.torch import save_file

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def encoders(text: str, *settings: str, verb: str = "check") -> Make:
    """`artkv check` of the world's config with this list in place of its `efficientnet`."""
    return lambda place: [
        verb, *place.config("efficientnet=null", f"art_encoders={text.format(world=place.world)}", *settings)
    ]  # fmt: skip


EFFICIENTNET = "architecture: test_efficientnet, checkpoint: {world}/efficientnet.safetensors, image_size: 32"


def one(more: str) -> Make:
    """With this in the one entry, whose weights are those of the world's EfficientNet."""
    return encoders("[{{" + EFFICIENTNET + ", " + more + "}}]")


def of_a_vit(image_size: int, more: str = "") -> Make:
    """With a ViT of 160 pixels, at another size."""

    def make(place: Place) -> list[str]:
        path = _vit(place.folder / "vit.safetensors", "test_vit")
        entry = f"{{architecture: test_vit, checkpoint: {path}, image_size: {image_size}{more}}}"
        return ["check", *place.config("efficientnet=null", f"art_encoders=[{entry}]")]

    return make


def _vit(path: Path, architecture: str) -> Path:
    state = timm.create_model(architecture, num_classes=2).state_dict()
    save_file(state, path)
    return path


def _of_another(place: Place) -> list[str]:
    path = _vit(place.folder / "vit.safetensors", "test_vit2")
    entry = f"{{architecture: test_vit, checkpoint: {path}, image_size: 160}}"
    return ["check", *place.config("efficientnet=null", f"art_encoders=[{entry}]")]


ENCODERS = Area(
    "Art encoders",
    [
        BadInput(
            "both forms",
            lambda place: ["check", *place.config("art_encoders=[{}]")],
            (
                "efficientnet is the short form of art_encoders",
                "both are given; move it into the list, or leave it out",
            ),
        ),
        BadInput(
            "a list of none", encoders("[]"), ("art_encoders = []: holds no encoder", "kv_modulation.enabled: false")
        ),
        BadInput("a number for the list", encoders("3"), ("art_encoders = 3: ", "give a list of encoders")),
        BadInput("a section for the list", encoders("{{a: 3}}"), ("art_encoders = ", "give a list of encoders")),
        BadInput("a number for an entry", encoders("[3]"), ("art_encoders.0 = 3: is a section; give keys under it",)),
        BadInput("a list in the list", encoders("[[]]"), ("art_encoders.0 = []: is a section; give keys under it",)),
        BadInput("a misspelled key", one("sise: 3"), ("art_encoders.0.sise = 3: unknown key; did you mean 'size'?",)),
        BadInput(
            "two of one name", encoders("[{{}}, {{}}]"), ("several are named 'efficientnet_b3'; give each a name",)
        ),
        BadInput(
            "a name with a dot", one("name: a.b"), ("art_encoders.0.name = 'a.b': is no plain name", "give small")
        ),
        BadInput("a name of a path", one("name: ../x"), ("art_encoders.0.name = '../x': is no plain name",)),
        BadInput("a name that begins with a digit", one("name: 3d"), ("art_encoders.0.name = '3d': is no plain name",)),
        BadInput("an empty name", one("name: ''"), ("art_encoders.0.name = '': is no plain name",)),
        BadInput("a name of a hundred letters", one(f"name: {'a' * 100}"), ("is no plain name",)),
        BadInput(
            "an architecture that makes no name",
            encoders("[{{architecture: ViT/16}}]"),
            ("art_encoders.0: architecture = 'ViT/16' makes no plain name; give name",),
        ),
        BadInput(
            "an architecture that nobody knows",
            encoders("[{{architecture: vit_tinny_patch16_224}}]"),
            (
                "art_encoders.0.architecture: 'vit_tinny_patch16_224' is no model of timm",
                "vit_tiny_patch16_224",
            ),
        ),
        BadInput(
            "an architecture with an unknown tag",
            encoders("[{{architecture: test_vit.nobody, checkpoint: x.pth}}]"),
            (
                "art_encoders.0.architecture: 'test_vit.nobody' cannot be made",
                "leave out what follows the dot",
            ),
        ),
        BadInput(
            "no checkpoint",
            encoders("[{{architecture: test_vit, image_size: 160}}]"),
            ("art_encoders.0.checkpoint: null: it must name a checkpoint",),
        ),
        BadInput(
            "a checkpoint that is missing",
            encoders("[{{" + EFFICIENTNET + "}}, {{architecture: test_vit, image_size: 160, checkpoint: no.pth}}]"),
            ("no.pth does not exist; art_encoders.1.checkpoint must name",),
        ),
        BadInput(
            "a way of reading that there is not", one("read: maps"), ("art_encoders.0.read = 'maps'", "give pooled")
        ),
        BadInput("a map without a size", one("read: map"), ("art_encoders.0: read: map needs size",)),
        BadInput("tokens without a size", one("read: tokens"), ("art_encoders.0: read: tokens needs size",)),
        BadInput("a size of what is pooled", one("size: 2"), ("size = 2 is for read: map or tokens", "leave it out")),
        BadInput("a map of 0", one("read: map, size: 0"), ("art_encoders.0.size = 0", "give with read: map")),
        BadInput("a map of half a token", one("read: map, size: 1.5"), ("art_encoders.0.size = 1.5",)),
        BadInput("a map of a million", one("read: map, size: 1000000"), ("art_encoders.0.size = 1000000",)),
        BadInput(
            "a map of more than there is",
            one("read: map, size: 40"),
            ("art_encoders.0.size = 40: test_efficientnet has 1 places a side at this image_size; give 1 or fewer",),
        ),
        BadInput(
            "tokens of a network that has none",
            one("read: tokens, size: 2"),
            ("art_encoders.0.read = tokens: test_efficientnet gives a feature map and no tokens; give map",),
        ),
        BadInput("a view that there is not", one("view: center"), ("art_encoders.0.view = 'center'", "give centre")),
        BadInput(
            "a ViT at a size that its patches do not fill",
            of_a_vit(150),
            (
                "art_encoders.0.image_size = 150: test_vit sees patches of 16 pixels",
                "give a multiple of 16, such as 144",
            ),
        ),
        BadInput(
            "more tokens than a ViT has",
            of_a_vit(64, ", read: tokens, size: 17"),
            ("art_encoders.0.size = 17: test_vit has 16 tokens at this image_size; give 16 or fewer",),
        ),
        BadInput(
            "a checkpoint of another ViT",
            _of_another,
            (
                "does not hold the weights of test_vit",
                "it seems to be test_vit2: set art_encoders.0.architecture: test_vit2",
            ),
        ),
        BadInput(
            "an EfficientNet's checkpoint for a ViT",
            encoders("[{{architecture: test_vit, image_size: 160, checkpoint: {world}/efficientnet.safetensors}}]"),
            ("does not hold the weights of test_vit",),
        ),
        BadInput(
            "an entry that the list has not",
            lambda place: ["check", *place.config("efficientnet=null", "art_encoders=[{}]", "art_encoders.3.read=map")],
            ("--set art_encoders.3: art_encoders has no such entry; its entries are 0 to 0",),
        ),
    ],
)
