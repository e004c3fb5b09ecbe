"""`--set` with what is no setting, no value, or no possible one."""

from tests.bad_inputs.cases import Area, BadInput, Make


def setting(text: str) -> Make:
    """`artkv check` of the world's config with this `--set`."""
    return lambda place: ["check", "--config", str(place.world / "config.yaml"), "--set", text]


def number(key: str, value: str, remedy: str) -> BadInput:
    return BadInput(f"`{key}={value:.40}`", setting(f"{key}={value}"), (f"{key} = ", f"give {remedy}"))


SET = Area(
    "`--set`",
    [
        BadInput("no value", setting("training.seed"), ("--set 'training.seed': expected section.key=value",)),
        BadInput("no key", setting("=3"), ("--set '=3': expected section.key=value",)),
        BadInput("no such key", setting("training.sed=3"), ("training.sed = 3: unknown key; did you mean 'seed'?",)),
        BadInput("a comment behind a number", setting("training.seed=3 # x"), ("for a comment; leave it out",)),
        BadInput("a section as a number", setting("training=3"), ("training is a section; name one of its keys",)),
        BadInput(
            "a setting of a section that the file has as a word",
            lambda place: [
                "check",
                "--config",
                str(place.write("my.yaml", "training:\n  batch_size:4\n")),
                "--set",
                "training.num_epochs=1",
            ],
            ("training = 'batch_size:4': is a section, where --set training.num_epochs is to go",),
        ),
        BadInput(
            "brackets that are never closed",
            setting("training.seed=[["),
            ("'[[' is not a YAML value (expected the node content", "give one such as 3"),
        ),
        BadInput(
            "an octal number",
            setting("training.seed=010"),
            ("'010' is another number in YAML 1.1 than in 1.2; write a number in decimal digits (10), a text",),
        ),
        BadInput(
            "minutes and seconds",
            setting("training.seed=1:30"),
            ("'1:30' is another number in YAML 1.1 than in 1.2; write a number in decimal digits",),
        ),
        BadInput(
            "an entry of a list that the config has not",
            setting("art_encoders.0.read=map"),
            ("--set art_encoders.0.read: the config has no list art_encoders to change; write the list there",),
        ),
        BadInput(
            "an entry of a list that the config has in its short form",
            setting("art_encoders.0.image_size=64"),
            ("has no list art_encoders to change; name efficientnet.image_size, or write the list there",),
        ),
        BadInput("aliases", setting("training.seed=*a"), ("is not a YAML value",)),
        BadInput("a NUL", setting("dataset.prompt=\0{question}"), ("holds the control character '\\x00'",)),
        BadInput("an escape sequence", setting("run.output_dir=\x1b]0;x"), ("holds the control character",)),
        BadInput("half a character", setting("run.output_dir=\udcff"), ("no UTF-8",)),
        BadInput("an empty path", setting('dataset.train=" "'), ("dataset.train = ' ': is empty; give a path",)),
        BadInput(
            "a home folder that nobody has", setting("run.output_dir=~nobody_here/x"), ("no home folder is known",)
        ),
        BadInput(
            "a file above the run's folder",
            setting("run.output_dir=/dev/null/run"),
            ("run.output_dir", "/dev/null", "give another"),
        ),
        number("training.seed", str(2**64), "a whole number of 0 or more, below 2^63"),
        number("training.num_epochs", "1000000000", "a whole number of 1 to 100000"),
        number("training.gradient_accumulation_steps", "1000000000", "a whole number of 1 to 65536"),
        number("training.batch_size", "1e9", "most questions in a micro-step"),
        number("training.learning_rate", "1e30", "a number above 0"),
        number("training.learning_rate", ".nan", "a number above 0"),
        number("training.max_grad_norm", "1e40", "a number above 0"),
        number("distributed.timeout_minutes", "1e300", "minutes, of 0.001 to a million"),
        number("efficientnet.image_size", "1000000", "side of the square picture"),
        number("efficientnet.std", "[0, 0, 0]", "three numbers"),
        number("efficientnet.mean", "[124, 116, 104]", "three numbers of 0 to 1"),
        number("efficientnet.std", "[58.4, 57.1, 57.4]", "three numbers of 0.000001 to 1"),
        number("kv_modulation.num_prefix_tokens", "100000000", "a whole number of 1 to 4096"),
        number("trainable.lora.rank", "99999999", "a whole number of 1 to 16384"),
        number("dataset.workers", "1000000", "threads a rank"),
        number("evaluation.max_new_tokens", "100000000", "most tokens of an answer"),
        number("evaluation.bootstrap_samples", "1000000000000", "resamples"),
        number("frozen.slots", "1000000", "a whole number of 1 to 1024"),
        number("run.checkpoint_every", "0", "optimizer steps"),
        BadInput(
            "`frozen.memory_budget` of 10^400 bytes",
            setting("frozen={opt: stream, memory_budget: 1" + 400 * "0" + "GiB}"),
            ("frozen.memory_budget = ", "is no size of memory; give one such as 8GiB"),
        ),
        BadInput("a number of 5,000 digits", setting("training.seed=" + 5000 * "9"), ("is not a YAML value",)),
        BadInput(
            "a key with a character without width",
            setting("train\u200bing.seed=1"),
            (r"train\u200bing = ", "the key holds U+200B (ZERO WIDTH SPACE), which cannot be seen; type it anew"),
        ),
        BadInput(
            "`frozen.feature_cache=none`",
            setting("frozen.feature_cache=none"),
            ("frozen.feature_cache = ", "none would be a folder's name; null is for no cache"),
        ),
        *(
            BadInput(
                f"features {where}",
                lambda place, folder=folder: ["check", *place.config(f"frozen.feature_cache={folder}")],
                (f"frozen.feature_cache = {folder}: ", *says, "; give another place"),
            )
            for where, folder, says in [
                ("below a file", "/etc/passwd/x", ("/etc/passwd is not a folder that can be written",)),
                ("where nobody can write", "/proc/x", ("/proc cannot be written",)),
            ]
        ),
        BadInput(
            "a prompt with a second name in braces",
            setting("dataset.prompt=Question: {question} Answer: {answer}"),
            ("dataset.prompt = 'Question: ", "has {answer}, where {question} alone is filled in"),
        ),
        BadInput(
            "a prompt of 300 words",
            setting("dataset.prompt=" + 300 * "word " + "{question}"),
            ("dataset.prompt = 'word ", "has 1,501 tokens without a question", "room for 119 beside the picture's"),
        ),
    ],
)
