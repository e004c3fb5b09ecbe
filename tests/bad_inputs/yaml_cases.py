"""Configs that are no YAML, or not what a config holds."""

import os

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def config(text: str | bytes) -> Make:
    """`artkv check` of a config with this text."""
    return lambda place: ["check", "--config", str(place.write("my.yaml", text))]


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "my.yaml")
    return ["check", "--config", str(place.folder / "my.yaml")]


def loop(place: Place) -> list[str]:
    (place.folder / "my.yaml").symlink_to(place.folder / "my.yaml")
    return ["check", "--config", str(place.folder / "my.yaml")]


def given(path: str) -> Make:
    return lambda place: ["check", "--config", path]


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
NOT_YAML = "config {folder}/my.yaml: not valid YAML"

YAML = Area(
    "The config file",
    [
        BadInput(
            "a key that no section has",
            config("training: {epochs: 3}"),
            ("config {folder}/my.yaml:", "training.epochs = 3: unknown key; did you mean 'num_epochs'?"),
        ),
        BadInput("a bracket that is never closed", config("training: [3"), (NOT_YAML,)),
        BadInput("a word where a number belongs", config("training: {seed: !!int abc}"), (NOT_YAML, "no number")),
        BadInput("a hexadecimal number without digits", config("training: {seed: 0x_}"), (NOT_YAML, "no number")),
        BadInput(
            "a date that does not exist, where a number belongs",
            config("training: {seed: 2024-13-45}"),
            ("training.seed = '2024-13-45'", "give a whole number"),
        ),
        BadInput("a number that YAML 1.1 reads as octal", config("training: {seed: 010}"), (NOT_YAML, "YAML 1.1")),
        BadInput(
            "a number of 5,000 digits", config(f"training: {{seed: {5000 * '9'}}}"), (NOT_YAML, "5,000 characters")
        ),
        BadInput("10,000 lists in one another", config(10_000 * "["), (NOT_YAML, "deep")),
        BadInput("aliases of aliases of aliases", config(LAUGHS), (NOT_YAML, "aliases counted")),
        BadInput("an anchor that contains itself", config("training: &a {seed: *a}"), (NOT_YAML, "contains itself")),
        BadInput("a merge of a number", config("training: {<<: 3}"), (NOT_YAML, "for merging")),
        BadInput("a list as key", config("? [seed]\n: 3"), (NOT_YAML, "is no text")),
        BadInput("a number as key", config("training: {3: 4}"), (NOT_YAML, "the key '3' is no text")),
        BadInput("a key given twice", config("training: {seed: 1, seed: 2}"), (NOT_YAML, "'seed' is given twice")),
        BadInput("a tab as indentation", config("training:\n\tseed: 1"), (NOT_YAML, "line 2")),
        BadInput("a tag of Python", config("training: !!python/object:os.x {}"), (NOT_YAML, "tag")),
        BadInput("two documents", config("training: {}\n---\nmodel: {}"), (NOT_YAML, "single document")),
        BadInput(
            "a NUL",
            config(b"training:\n  seed: 1\0"),
            (NOT_YAML, r"'\x00' stands there", "special characters", "in line 2, column 10"),
        ),
        *(
            BadInput(
                f"{encoding} without its mark",
                config("training: {seed: 1}".encode(encoding)),
                ("config {folder}/my.yaml: not UTF-8 text (every second byte is NUL, as in UTF-16); save it as UTF-8",),
            )
            for encoding in ("utf-16-le", "utf-16-be")
        ),
        *(
            BadInput(f"a number written {number}", config(f"training: {{seed: {number}}}"), (NOT_YAML, says))
            for number, says in [
                ("1_0_0_", "'1_0_0_' is a number in YAML 1.1 and a text in 1.2; write 100, or put it in quotes"),
                ("0b101", "write decimal digits alone"),
            ]
        ),
        *(
            BadInput(
                f"the dotted key {key}",
                config(f"{key}: 3"),
                (
                    f"{key} = 3: a key with a dot is no way into a section; write '{rest}' as a key of its own",
                    f"under '{first}'",
                ),
            )
            for key, first, rest in [
                ("training.seed", "training", "seed"),
                ("trainable.lora.rank", "trainable", "lora.rank"),
            ]
        ),
        BadInput(
            "a dotted key in a section",
            config("trainable: {lora.rank: 3}"),
            (
                "trainable.lora.rank = 3: a key with a dot is no way into a section; write 'rank' as a key of its own",
                "under 'lora'",
            ),
        ),
        BadInput(
            "the same target of LoRA twice",
            config("trainable: {lora: {targets: [opt, opt]}}"),
            ("trainable.lora.targets = ['opt', 'opt']: names one of them twice; give a list from: qformer, opt, each",),
        ),
        BadInput(
            "an escape sequence",
            config(b'dataset: {prompt: "\x1b[2J"}'),
            (NOT_YAML, "special characters", "in line 1, column 20"),
        ),
        BadInput("an escape sequence, escaped", config('dataset: {prompt: "\\e[2J"}'), (NOT_YAML, "control character")),
        BadInput(
            "UTF-16", config("training: {seed: 1}".encode("utf-16")), ("config {folder}/my.yaml: not UTF-8", "save")
        ),
        BadInput("Latin-1", config("dataset: {train: Gemälde}".encode("latin-1")), ("not UTF-8 text",)),
        BadInput("a file of 3 MB", config(b"# " + bytes(3_000_000)), ("cannot be read (has 3,000,002 bytes",)),
        BadInput(
            "a list of sections",
            config("- training"),
            ("holds a list alone, \"['training']\", and no sections such as 'model:'; give another",),
        ),
        *(
            BadInput(f"instead of a config, {what}", config(text), ("config {folder}/my.yaml: is ", says))
            for what, text, says in [
                (
                    "a sweep",
                    "config: a.yaml\ngrid: {training.seed: [1]}",
                    "by its key grid; give it to artkv sweep, or",
                ),
                (
                    "DeepSpeed's config",
                    '{"bf16": {"enabled": true}}',
                    "key bf16; give a config, and name this file in it as",
                ),
                (
                    "a model's config",
                    '{"model_type": "blip-2"}',
                    "by its key model_type; give a config, and name the folder",
                ),
                (
                    "a run's status",
                    '{"format_version": 2, "state": "x"}',
                    "run wrote, by its key format_version; give the",
                ),
            ]
        ),
        *(
            BadInput(
                f"a template's placeholder {where}",
                config(text),
                (NOT_YAML, "the key is no text, but in braces; fill in", at),
            )
            for where, text, at in [
                ("before a path", "dataset:\n  train: {{ data_dir }}/train.csv\n", "line 2, column 11"),
                ("on a line of its own", "{{ header }}\n", "line 1, column 2"),
            ]
        ),
        *(
            BadInput(
                f"a number beyond sense, {key}", config(f"{section}: {{{key}: {value}}}"), (f"{section}.{key} = ", says)
            )
            for section, key, value, says in [
                ("training", "learning_rate", "1000", "give a number above 0, such as 1.0e-4, of 1 at most"),
                ("training", "weight_decay", "100", "give a number of 0 to 10"),
                ("efficientnet", "image_size", "3", "of 16 to 4096"),
            ]
        ),
        BadInput("a section that is a number", config("training: 3"), ("training = 3: is a section",)),
        BadInput("a pipe", pipe, ("config {folder}/my.yaml: cannot be read (is a pipe",)),
        BadInput("a circle of symbolic links", loop, ("config {folder}/my.yaml: cannot be read",)),
        BadInput("a folder", given("/"), ("config /: cannot be read (is a folder",)),
        BadInput("a device", given("/dev/zero"), ("config /dev/zero: cannot be read (is a device",)),
        BadInput("a name of 300 characters", given(300 * "n"), ("cannot be read (File name too long)",)),
        BadInput(
            "another program's 1,000 keys", config("\n".join(f"k{n}: 1" for n in range(1000))), ("of 1,000 in all",)
        ),
        BadInput(
            "a home folder that nobody has",
            config("dataset: {train: ~nobody_here/train.csv}"),
            ("dataset.train = '~nobody_here/train.csv': no home folder is known", "give the path in full"),
        ),
        *(
            BadInput(
                f"an empty {key}",
                config(f"{section}: {{{key}: '{blank}'}}"),
                (f"{section}.{key} = '{blank}': is empty; give {remedy}\n",),
            )
            for section, key, blank, remedy in [
                ("model", "blip2", "", "a hub id or a path"),
                ("training", "deepspeed", " ", "the name of a file of ds_configs/, or a path"),
                ("run", "output_dir", "", "a path"),
                ("dataset", "train", "  ", "a path"),
                ("dataset", "image_root", "", "a path"),
                ("dataset", "val", "", "a path, or null for none"),
                ("frozen", "feature_cache", "", "a path, or null for none"),
            ]
        ),
        BadInput(
            "a key with a character without width",
            config("training: {se\u200bed: 1}"),
            (r"training.se\u200bed = 1: the key holds U+200B (ZERO WIDTH SPACE), which cannot be seen; type it anew",),
        ),
        BadInput(
            "a section indented by spaces of the web",
            config("training:\n\u00a0\u00a0seed: 1\n"),
            (r"\xa0\xa0seed = 1: the key holds U+00A0 (NO-BREAK SPACE), which cannot be seen; type it anew",),
        ),
        BadInput(
            "a choice with a character without width",
            config('model: {backend: "transformers\u200b"}'),
            (r"model.backend = 'transformers\u200b', which holds U+200B (ZERO WIDTH SPACE)",),
        ),
        *(
            BadInput(
                name,
                config(text),
                (f"{where}: the key holds '{letter}', {code}, which no key has; type it anew",),
            )
            for name, text, where, letter, code in [
                (
                    "a key with a Cyrillic letter",
                    "training: {b\u0430tch_size: 4}",
                    "training.b\u0430tch_size = 4",
                    "\u0430",
                    "U+0430 (CYRILLIC SMALL LETTER A)",
                ),
                (
                    "a section with a Greek letter",
                    "m\u03bfdel: {dtype: float32}",
                    "m\u03bfdel = {'dtype': 'float32'}",
                    "\u03bf",
                    "U+03BF (GREEK SMALL LETTER OMICRON)",
                ),
                (
                    "a key in quotes of a word processor",
                    "training: {\u201cseed\u201d: 4}",
                    "training.\u201cseed\u201d = 4",
                    "\u201c",
                    "U+201C (LEFT DOUBLE QUOTATION MARK)",
                ),
                (
                    "a key with a wide letter",
                    "\uff4dodel: {dtype: float32}",
                    "\uff4dodel = {'dtype': 'float32'}",
                    "\uff4d",
                    "U+FF4D (FULLWIDTH LATIN SMALL LETTER M)",
                ),
            ]
        ),
        *(
            BadInput(name, config(text), (says,))
            for name, text, says in [
                (
                    "a choice with a Cyrillic letter",
                    "model: {dtype: flo\u0430t32}",
                    "(it holds '\u0430', U+0430 (CYRILLIC SMALL LETTER A)); give",
                ),
                (
                    "a choice in quotes of a word processor",
                    "model: {dtype: \u201cfloat32\u201d}",
                    "(it holds '\u201c', U+201C (LEFT DOUBLE QUOTATION MARK)); give",
                ),
                (
                    "a minus sign of a word processor",
                    "training: {seed: \u22121}",
                    "(it holds '\u2212', U+2212 (MINUS SIGN)); give",
                ),
                (
                    "true in quotes",
                    "training: {deterministic: 'true'}",
                    "in quotes, which make a text of it; write it without",
                ),
                ("a number in quotes", "training: {batch_size: '4'}", "in quotes, which make a text of it"),
                ("a decimal comma", "training: {learning_rate: 0,001}", "a decimal number has a point: write 0.001"),
                (
                    "a decimal comma, on a line of its own",
                    "training:\n  learning_rate: 0,001\n",
                    "training.learning_rate = '0,001': ",
                ),
                (
                    "a decimal comma, on a line of its own, and what is meant",
                    "training:\n  learning_rate: 0,5\n",
                    "(a decimal number has a point, not a comma); give",
                ),
                (
                    "no space behind the colons",
                    "model:\n  blip2:blip2\n  dtype:float32\n",
                    "such as model.backend, each as `key: value` with a space",
                ),
                (
                    "no space behind a colon, in braces",
                    "training: {seed:1}",
                    "a colon parts a key from its value where a space is behind it; write `seed: 1`",
                ),
                (
                    "no space behind one colon",
                    "training:\n  seed:1\n  batch_size: 4\n",
                    "the line above it lacks the space behind its colon",
                ),
                (
                    "a colon for a dot",
                    "training:seed: 1",
                    "training:seed = 1: unknown key; did you mean 'training.seed'?",
                ),
                (
                    "an address for a table",
                    "dataset: {train: 'https://example.org/train.csv'}",
                    "dataset.train = 'https://example.org/train.csv': is an address, and artkv fetches nothing from it",
                ),
                (
                    "an address for a model",
                    "model: {blip2: 's3://b/blip2'}",
                    "no such folder, and no hub id; give an id such as",
                ),
                (
                    "an address for a run",
                    "run: {output_dir: 'gs://b/run'}",
                    "run.output_dir = 'gs://b/run': is an address",
                ),
                (
                    "a path in quotes of a word processor",
                    "dataset: {train: \u201ctrain.csv\u201d}",
                    "begins with the quote \u201c, which YAML takes for a part of the name",
                ),
            ]
        ),
    ],
)
