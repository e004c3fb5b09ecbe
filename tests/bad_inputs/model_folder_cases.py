"""Model folders that are damaged, planted, or another model's."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def folder(damage: Callable[[Path], object], verb: str = "check") -> Make:
    """`artkv check` with a copy of the world's BLIP-2 that `damage` changes."""

    def make(place: Place) -> list[str]:
        blip2 = place.copy("blip2")
        damage(blip2)
        return [verb, *place.config(f"model.blip2={blip2}")]

    return make


def text(name: str, content: str) -> Make:
    """With this text in a file of the folder."""
    return folder(lambda blip2: (blip2 / name).write_text(content))


def value(name: str, *keys: str, to: Any) -> Make:
    """With one value of a JSON file changed."""

    def damage(blip2: Path) -> None:
        tree = json.loads((blip2 / name).read_text())
        inner = tree
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (blip2 / name).write_text(json.dumps(tree))

    return folder(damage)


def cut(name: str, kept: int) -> Make:
    """With a file that ends after so many bytes."""
    return folder(lambda blip2: os.truncate(blip2 / name, kept))


def pipe(name: str) -> Make:
    """With a pipe in a file's place."""

    def damage(blip2: Path) -> None:
        (blip2 / name).unlink(missing_ok=True)
        os.mkfifo(blip2 / name)

    return folder(damage)


def blip2(setting: str, *more: str) -> Make:
    """`artkv check` with this setting of the model."""
    return lambda place: ["check", *place.config(setting, *more)]


def vocabulary(change: Callable[[dict[str, int], str], object]) -> Make:
    """With a tokenizer whose ids are changed; the second argument is one of its tokens."""

    def damage(blip2: Path) -> None:
        tree = json.loads((blip2 / "tokenizer.json").read_text())
        ids = tree["model"]["vocab"]
        change(ids, list(ids)[-3])
        (blip2 / "tokenizer.json").write_text(json.dumps(tree))

    return folder(damage)


_SIZE = ("text_config", "hidden_size")

MODEL_FOLDERS = Area(
    "Model folders",
    [
        BadInput(
            "no such folder",
            blip2("model.blip2=/nowhere"),
            ("model.blip2 = '/nowhere': no such folder; give a hub id",),
        ),
        BadInput(
            "a file for the folder",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a', 'b')}")],
            ("model.blip2 = '{folder}/a': is a file, where a folder belongs",),
        ),
        BadInput(
            "a folder for the .pth",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a.pth/b', '').parent}", "model.opt=x")],
            ("a.pth': cannot be read (is a folder",),
        ),
        BadInput(
            "a name of 5,000 characters",
            blip2(f"model.blip2=/{'x' * 5000}"),
            ("model.blip2 = '/xxx", "cannot be read (File name too long)"),
        ),
        BadInput(
            "a revision of a folder",
            blip2("model.revision=main"),
            ("model.revision = 'main': is for a hub id, and model.blip2 = ", "is a folder; leave it out"),
        ),
        BadInput(
            "a revision that leads elsewhere",
            blip2("model.revision=../../x"),
            ("model.revision = '../../x': is no name of a commit, tag or branch",),
        ),
        BadInput(
            "an empty folder",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a/b', '').parent}")],
            ("{folder}/a has no config.json; give a folder of save_pretrained",),
        ),
        BadInput(
            "half a config.json",
            cut("config.json", 100),
            ("blip2/config.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "an empty config.json",
            text("config.json", ""),
            ("blip2/config.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "a config.json that is a list",
            text("config.json", "[1]"),
            ("config.json: holds a list, where a JSON object belongs",),
        ),
        BadInput(
            "a config.json that nests without an end",
            text("config.json", '{"a":' * 100_000),
            ("config.json: cannot be read (lists or objects nest too deeply)",),
        ),
        *(
            BadInput(
                f"`{'.'.join(keys)}: {json.dumps(to)}` in config.json",
                value("config.json", *keys, to=to),
                (f"config.json: {'.'.join(keys)} = {to!r}: {says}", remedy),
            )
            for keys, to, says, remedy in [
                *(
                    (keys, to, "is no activation that transformers has, such as 'gelu'", "put the config there")
                    for keys, to in [
                        (("vision_config", "hidden_act"), "nope"),
                        (("qformer_config", "hidden_act"), ""),
                        (("text_config", "activation_function"), "evil"),
                    ]
                ),
                (("qformer_config", "hidden_act"), "geluu", "is no activation", "did you mean 'gelu'?"),
                (("text_config", "num_attention_heads"), 3, "must divide text_config.hidden_size", "put the config"),
                (("vision_config", "num_attention_heads"), 5, "must divide vision_config.hidden_size", "put the"),
                (("qformer_config", "num_attention_heads"), 7, "must divide qformer_config.hidden_size", "put the"),
                *(
                    (keys, {"quant_method": "gptq"}, "its weights are quantised", "frozen.opt: int8 or nf4")
                    for keys in [("quantization_config",), ("text_config", "quantization_config")]
                ),
                (("dtype",), "int3", "must be one of float32", "or leave it out (model.dtype settles"),
                (("text_config", "torch_dtype"), 16, "must be one of float32", "or leave it out"),
                (("use_decoder_only_language_model",), False, "must be true", "put the model's own there"),
            ]
        ),
        *(
            BadInput(
                f"`{step}: {json.dumps(to)}` in preprocessor_config.json",
                value("preprocessor_config.json", step, to=to),
                (f"its {step} is {json.dumps(to)}, and artkv", "put the model's own there"),
            )
            for step, to in [("do_normalize", "no"), ("do_resize", 0), ("do_center_crop", "no"), ("do_pad", [])]
        ),
        BadInput(
            "a config.json that is a pipe", pipe("config.json"), ("blip2/config.json: cannot be read (is a pipe",)
        ),
        BadInput(
            "another model's config.json",
            text("config.json", '{"model_type": "llama"}'),
            ("is 'llama', expected blip-2 with opt; give Salesforce/blip2-opt-2.7b",),
        ),
        BadInput(
            "a config.json that wants code",
            value("config.json", "auto_map", to={"AutoConfig": "evil.Config"}),
            ("config.json: auto_map wants code of its own to be run, which artkv never does",),
        ),
        BadInput(
            "a billion layers",
            value("config.json", "text_config", "num_hidden_layers", to=10**9),
            ("config.json: text_config.num_hidden_layers = 1000000000: must be a whole number from 1 to 1,000",),
        ),
        BadInput(
            "900 layers, which the weights lack",
            value("config.json", "vision_config", "num_hidden_layers", to=900),
            ("config.json: vision_config.num_hidden_layers = 900: the weights have ",),
        ),
        BadInput(
            "a vocabulary of 2^40",
            value("config.json", "text_config", "vocab_size", to=2**40),
            ("text_config.vocab_size = 1099511627776: must be a whole number from 1 to 100,000,000",),
        ),
        BadInput(
            "a width in words",
            value("config.json", *_SIZE, to="wide"),
            ("text_config.hidden_size = 'wide': must be a whole number",),
        ),
        BadInput(
            "a width of a list",
            value("config.json", *_SIZE, to=[40]),
            ("text_config.hidden_size = [40]: must be a whole number",),
        ),
        BadInput(
            "a negative width",
            value("config.json", *_SIZE, to=-40),
            ("text_config.hidden_size = -40: must be a whole number",),
        ),
        BadInput(
            "a width that the weights have not",
            value("config.json", *_SIZE, to=44),
            ("text_config.word_embed_proj_dim = 40: must be text_config.hidden_size, which is 44; put",),
        ),
        BadInput(
            "an epsilon of 0",
            value("config.json", "vision_config", "layer_norm_eps", to=0),
            ("vision_config.layer_norm_eps = 0: must be a number between 0 and 1",),
        ),
        BadInput(
            "a dropout below 0",
            value("config.json", "text_config", "dropout", to=-1),
            ("config.json: text_config.dropout = -1: must be a number from 0 to 1; put the model's own there",),
        ),
        BadInput(
            "a dropout in words",
            value("config.json", "qformer_config", "hidden_dropout_prob", to="none"),
            ("qformer_config.hidden_dropout_prob = 'none': must be a number from 0 to 1",),
        ),
        BadInput(
            "a padding token beyond the vocabulary",
            value("config.json", "text_config", "pad_token_id", to=10**9),
            ("text_config.pad_token_id = 1000000000: must be a token of the vocabulary, a whole number from 0 to 319",),
        ),
        BadInput(
            "a head of its own, which the weights lack",
            value("config.json", "text_config", "tie_word_embeddings", to=False),
            (
                "language_model.lm_head.weight is missing, which config.json says is not tied",
                "save_pretrained wrote it",
            ),
        ),
        BadInput(
            "text_config that is text",
            value("config.json", "text_config", to="opt"),
            ("config.json: has no object for text_config", "put the model's own there"),
        ),
        BadInput(
            "NaN in a config.json",
            text("config.json", '{"model_type": NaN}'),
            ("config.json: cannot be read (NaN is no number of JSON)",),
        ),
        BadInput(
            "no preprocessor_config.json",
            folder(lambda path: (path / "preprocessor_config.json").unlink()),
            ("blip2: no preprocessor_config.json of a BlipImageProcessor; put",),
        ),
        BadInput(
            "half a preprocessor_config.json",
            cut("preprocessor_config.json", 50),
            ("preprocessor_config.json: cannot be read (",),
        ),
        BadInput(
            "standard deviations of 0",
            value("preprocessor_config.json", "image_std", to=[0, 0, 0]),
            ("preprocessor_config.json: cannot be read (its std is (0, 0, 0), expected three numbers above 0",),
        ),
        BadInput(
            "means in words",
            value("preprocessor_config.json", "image_mean", to=["a", "b", "c"]),
            ("its mean is ('a', 'b', 'c'), expected three numbers",),
        ),
        BadInput(
            "two means",
            value("preprocessor_config.json", "image_mean", to=[0.5, 0.5]),
            ("its mean is (0.5, 0.5), expected three numbers",),
        ),
        BadInput(
            "pictures of another size",
            value("preprocessor_config.json", "size", to={"height": 32, "width": 32}),
            ("preprocessor_config.json has size 32x32, config.json a ViT of 28x28",),
        ),
        BadInput(
            "pictures without a size",
            value("preprocessor_config.json", "size", to={"longest_edge": 32}),
            ("preprocessor_config.json: cannot be read (its size has height None and width None",),
        ),
        BadInput(
            "pictures that are not normalised",
            value("preprocessor_config.json", "do_normalize", to=False),
            ("its do_normalize is false, and artkv does it",),
        ),
        BadInput(
            "half a tokenizer.json",
            cut("tokenizer.json", 500),
            ("blip2/tokenizer.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "a tokenizer.json of something else",
            text("tokenizer.json", '{"version": "1.0"}'),
            ("blip2/tokenizer.json: lacks added_tokens and model", "put OPT's tokenizer files there"),
        ),
        BadInput(
            "a tokenizer_config.json that is a number",
            text("tokenizer_config.json", "7"),
            ("tokenizer_config.json: holds a int, where a JSON object belongs",),
        ),
        BadInput(
            "a tokenizer that wants code",
            value("tokenizer_config.json", "auto_map", to={"AutoTokenizer": ["evil.T", None]}),
            ("tokenizer_config.json: auto_map wants code of its own",),
        ),
        BadInput(
            "no tokenizer",
            folder(lambda path: (path / "tokenizer.json").unlink()),
            ("blip2: no tokenizer there (neither tokenizer.json nor vocab.json)",),
        ),
        BadInput(
            "a garbled generation_config.json",
            text("generation_config.json", "{"),
            ("generation_config.json: cannot be read (",),
        ),
        BadInput(
            "a token's id beyond the embedding",
            vocabulary(lambda ids, token: ids.update({token: 5000})),
            (
                "blip2: its tokenizer has the id 5,000 for ",
                "embedding has 320 rows, for ids to 319; put the model's own",
            ),
        ),
        BadInput(
            "one id for all tokens",
            vocabulary(lambda ids, token: ids.update(dict.fromkeys(list(ids)[5:], 5))),
            ("blip2: its tokenizer has one id for several tokens; put the model's own tokenizer there",),
        ),
        BadInput(
            "a special token beyond the embedding",
            value("tokenizer_config.json", "added_tokens_decoder", to={"9999": {"content": "<x>", "special": True}}),
            ("blip2: its tokenizer has the id 320 for '<x>', and the model's embedding has 320 rows",),
        ),
        BadInput(
            "an end of text beyond the vocabulary",
            value("config.json", "text_config", "eos_token_id", to=[2, 320]),
            ("text_config.eos_token_id = [2, 320]: must be a token of the vocabulary, a whole number from 0 to 319",),
        ),
        BadInput(
            "a beginning of text in words",
            value("config.json", "text_config", "bos_token_id", to="</s>"),
            ("text_config.bos_token_id = '</s>': must be a token of the vocabulary",),
        ),
        BadInput(
            "a picture's token beyond the vocabulary",
            value("config.json", "image_token_index", to=50265),
            ("config.json: image_token_index = 50265: must be a token of the vocabulary",),
        ),
        BadInput(
            "a Q-Former for another ViT",
            value("config.json", "qformer_config", "encoder_hidden_size", to=36),
            ("qformer_config.encoder_hidden_size = 36: must be vision_config.hidden_size, which is 32",),
        ),
        BadInput(
            "positions for the picture alone",
            value("config.json", "text_config", "max_position_embeddings", to=6),
            ("max_position_embeddings = 6: leaves no room for a question beside num_query_tokens, which is 6",),
        ),
        BadInput(
            "patches larger than the picture",
            value("config.json", "vision_config", "patch_size", to=64),
            ("vision_config.patch_size = 64: is more than vision_config.image_size, which is 28",),
        ),
        BadInput(
            "pictures of which the middle is cut out",
            value("preprocessor_config.json", "do_center_crop", to=True),
            ("its do_center_crop is true, and artkv takes pictures whole",),
        ),
    ],
)
