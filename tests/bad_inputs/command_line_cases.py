"""Command lines with options that cannot be meant; wrong usage has exit code 2."""

import re

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def typed(*words: str) -> Make:
    """`artkv` with these words; `{folder}`, `{world}` and `{trained}` stand for the paths."""

    def make(place: Place) -> list[str]:
        paths = {"{folder}": place.folder, "{world}": place.world, "{trained}": place.trained}
        return [re.sub(r"{\w+}", lambda found: str(paths.get(found[0], found[0])), word) for word in words]

    return make


def below_a_file(*words: str) -> Make:
    """The same, with a file `file` in the folder."""

    def make(place: Place) -> list[str]:
        place.write("file", "x")
        return typed(*words)(place)

    return make


def usage(name: str, *words: str, says: tuple[str, ...]) -> BadInput:
    return BadInput(name, typed(*words), says, 2)


def sweep(text: str) -> Make:
    """`artkv sweep` of the world's config, with this after the first two lines."""

    def make(place: Place) -> list[str]:
        head = f"config: {place.world / 'config.yaml'}\noutput_dir: {place.folder / 'runs'}\n"
        return ["sweep", str(place.write("sweep.yaml", head + text)), "--list"]

    return make


def serve(host: str) -> Make:
    """`artkv serve` at this address."""
    return lambda place: ["serve", "--checkpoint", str(place.trained), "--port", "0", "--host", host]


def art_encoder(*more: str) -> Make:
    """`artkv art-encoder` of four pictures of two styles."""

    def make(place: Place) -> list[str]:
        for number in range(4):
            picture = (place.world / "images" / f"train{2 * number}.png").read_bytes()
            place.write(f"data/{'AB'[number % 2]}/{number}.png", picture)
        options = ["--data", str(place.folder / "data"), "--output-dir", str(place.folder / "out")]
        return ["art-encoder", *options, "--architecture", "test_efficientnet", "--device", "cpu", *more]

    return make


def _swept(place: Place) -> str:
    return f"{{config: {place.world}/config.yaml, output_dir: s, split: test, grid: {{training.seed: [1]}}}}"


def own_control(place: Place) -> list[str]:
    run = str(place.run())
    return ["evaluate", "--checkpoint", run, "--all-ablations", "--control", run]


COMMAND_LINE = Area(
    "The command line",
    [
        BadInput(
            "a run that is not there, for `compare`",
            lambda place: ["compare", str(place.run()), "contrl"],
            ("contrl: no such folder; give the run.output_dir of a run",),
        ),
        usage("a verb with a letter missing", "trai", says=("no verb 'trai'", "did you mean 'train'?")),
        usage(
            "an option before the verb",
            "--config",
            "my.yaml",
            "check",
            says=("--config stands before the verb; give the verb first: artkv check --config",),
        ),
        usage("a verb that controls a terminal", "\x1b[2J", says=("no verb '\\x1b[2J'",)),
        usage("an option that controls a terminal", "status", "x", "--\x1b[2J", says=("--\\x1b[2J",)),
        usage("an empty path", "check", "--config", "", says=("--config", "is empty")),
        usage("a path with a NUL", "train", "--config", "a\0b", says=("--config", "holds a NUL")),
        usage("a home folder that nobody has", "status", "~nobody_here/x", says=("no home folder is known",)),
        usage("a negative port", "serve", "--checkpoint", "x", "--port", "-1", says=("--port",)),
        usage("a port beyond all", "serve", "--checkpoint", "x", "--port", "65536", says=("--port", "from 0 to 65535")),
        usage("no run for the report", "report", says=("the following arguments are required: RUN\n",)),
        usage(
            "no number of pictures", "report", "x", "--pictures", "1e9", says=("--pictures", "is not a whole number")
        ),
        usage("5,000 digits of pictures", "report", "x", "--pictures", 5000 * "9", says=("--pictures", "whole number")),
        usage("no processes", "quickstart", "--ranks", "0", says=("--ranks", "whole number from 1 to 1024")),
        usage("a seed beyond 63 bits", "quickstart", "--seed", str(2**63), says=("--seed", "whole number")),
        usage("a picture that is no PNG", "ask", "--checkpoint", "x", "y", "z", "--attention", "a.jpg", says=(".png",)),
        usage("no question", "ask", "--checkpoint", "x", "y", " ", says=("QUESTION", "is empty")),
        *(
            usage(
                f"a prefix that is none: {what}",
                "evaluate",
                "--checkpoint",
                "x",
                "--prefix",
                text,
                says=("--prefix", says),
            )
            for what, text, says in [
                ("a word", "none", "'none' is none of on, off and shuffled, nor off:NAME or shuffled:NAME"),
                ("off without a name behind the colon", "off:", "'off:' is none of"),
                ("an encoder on", "on:a", "'on:a' is none of"),
            ]
        ),
        BadInput(
            "one of one encoder off",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--prefix", "off:test_efficientnet"],
            ("--prefix off:test_efficientnet: {folder}/", "has one art encoder alone; give --prefix off"),
        ),
        BadInput(
            "an encoder that is none shuffled",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--prefix", "shuffled:\x1b[2J"],
            ("--prefix shuffled:", "has one art encoder alone; give --prefix shuffled"),
        ),
        BadInput(
            "a run as its own control",
            own_control,
            ("--control {folder}/", "was trained with a prefix; give --control a run without one"),
        ),
        BadInput(
            "all ablations and one of them",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--all-ablations", "--prefix", "off"],
            ("--prefix off: is one of what --all-ablations answers with; leave out one of the two",),
        ),
        BadInput(
            "all ablations and a blank picture",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--all-ablations", "--image", "blank"],
            ("--image blank: is one of what --all-ablations answers with; leave out one of the two",),
        ),
        BadInput(
            "controls without ablations to be compared with",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--control", "a", "--control", "b"],
            ("--control: is compared with all ablations; add --all-ablations",),
        ),
        usage("no such split", "evaluate", "--checkpoint", "x", "--split", "all", says=("--split", "invalid choice")),
        BadInput(
            "a file to write the plan into that is not there",
            lambda place: ["plan", "--gpu-memory", "8GiB", "--write", "none.yaml"],
            ("--write none.yaml: no such file; give an existing YAML file",),
        ),
        BadInput(
            "no file to write the plan into",
            lambda place: ["plan", "--gpu-memory", "8GiB", "--write"],
            ("--write: names no file, and --config is not given; give one of them",),
        ),
        usage(
            "an option with one dash",
            "check",
            "-config",
            "x",
            says=("-config: options have two dashes; write --config",),
        ),
        usage(
            "an option's value with one dash",
            "train",
            "-set=a.b=c",
            says=("options have two dashes; write --set=a.b=c",),
        ),
        usage("no paintings", "plan", "--paintings", "0", says=("--paintings", "whole number")),
        BadInput(
            "more memory than there is", typed("plan", "--gpu-memory", 400 * "9" + "GB"), ("is no size of memory",)
        ),
        BadInput(
            "a GPU that nobody made", typed("plan", "--gpu", "\x1b[2J"), ("--gpu '\\x1b[2J': is not in the table",)
        ),
        BadInput(
            "a plan of a micro-batch of millions of tokens",
            typed("plan", "--set", "training.batch_size=65536"),
            ("training.batch_size = 65536 with --text-tokens 32", "lower one of them"),
        ),
        BadInput(
            "a plan of a text beyond OPT's positions",
            lambda place: ["plan", *place.config(), "--text-tokens", "65536"],
            ("--text-tokens 65536: OPT has positions for 122 beside the picture's", "give fewer"),
        ),
        BadInput(
            "a plan to be written below a file",
            below_a_file("plan", "--write", "{folder}/file/my.yaml"),
            ("--write {folder}/file/my.yaml: ", "{folder}/file"),
        ),
        BadInput(
            "a quickstart with a setting that is none",
            typed("quickstart", "--output-dir", "{folder}/q", "--set", "nonsense=1"),
            ("nonsense = 1: unknown key",),
        ),
        BadInput(
            "a quickstart among pictures",
            lambda place: ["quickstart", "--output-dir", str(place.write("mine/a.png", "").parent)],
            ("--output-dir {folder}/mine: holds a.png, and no quickstart", "give a new folder"),
        ),
        BadInput(
            "a quickstart of encoders among pictures",
            lambda place: [
                *("quickstart", "--world", "encoders"),
                *("--output-dir", str(place.write("mine/a.png", "").parent)),
            ],
            ("--output-dir {folder}/mine: holds a.png, and no quickstart", "give a new folder"),
        ),
        BadInput(
            "a quickstart of encoders among folders of pictures",
            lambda place: [
                *("quickstart", "--world", "encoders"),
                *("--output-dir", str(place.write("art/Pop/a.png", "").parents[1])),
            ],
            ("--output-dir {folder}/art: holds Pop, and no quickstart", "give a new folder"),
        ),
        BadInput(
            "an art encoder whose rate would rise",
            typed("art-encoder", "--data", "{folder}", "--minimum-learning-rate", "1"),
            ("minimum_learning_rate is 1, above learning_rate, which is 0.0003", "lower the first"),
        ),
        BadInput(
            "a quickstart below a file",
            below_a_file("quickstart", "--output-dir", "{folder}/file/q"),
            ("--output-dir {folder}/file/q: {folder}/file is not a folder", "give another place"),
        ),
        BadInput(
            "a quickstart in a file", below_a_file("quickstart", "--output-dir", "{folder}/file"), ("--output-dir",)
        ),
        BadInput(
            "a quickstart of three processes", typed("quickstart", "--ranks", "3"), ("--ranks 3: ", "give 1, 2 or 4")
        ),
        BadInput(
            "an art encoder of pictures too large",
            typed("art-encoder", "--data", "{folder}", "--image-size", "100000"),
            ("--image-size 100000", "less than or equal to 4096"),
        ),
        BadInput(
            "an art encoder with endless rates",
            typed("art-encoder", "--data", "{folder}", "--learning-rate", "inf"),
            ("--learning-rate inf", "finite"),
        ),
        BadInput(
            "an art encoder of a million processes",
            typed("art-encoder", "--data", "{folder}", "--workers", "1000000"),
            ("--workers 1000000", "less than or equal to 1024"),
        ),
        BadInput(
            "an art encoder below a file",
            below_a_file("art-encoder", "--data", "{folder}", "--output-dir", "{folder}/file/x"),
            ("--output-dir {folder}/file/x: {folder}/file is not a folder",),
        ),
        BadInput(
            "an art encoder that starts from nothing",
            art_encoder("--initial-checkpoint", "/none.pth"),
            ("/none.pth does not exist; --initial-checkpoint must name",),
        ),
        BadInput(
            "an art encoder with a root for folders",
            art_encoder("--image-root", "/none"),
            ("--image-root /none: is for a CSV, and {folder}/data is a folder; leave it out",),
        ),
        BadInput(
            "an art encoder's output among pictures",
            lambda place: [*art_encoder()(place)[:3], "--output-dir", str(place.write("mine/a.PNG", "x").parent)],
            ("--output-dir {folder}/mine: holds pictures, a.PNG the first; move it elsewhere, or give another",),
        ),
        BadInput("an art encoder without data", typed("art-encoder", "--data", ""), ("--data : ", "is empty")),
        BadInput("a sweep of nothing", sweep(""), ("sweep {folder}/sweep.yaml: has neither grid nor runs",)),
        BadInput("a sweep with a folder for each run", sweep("runs: [{run.output_dir: x}]"), ("is the sweep's own",)),
        BadInput("a sweep over numbers as paths", sweep("grid: {model.blip2: [3]}"), ("model.blip2 = 3: is no text",)),
        BadInput(
            "a sweep that is no table",
            lambda place: ["sweep", str(place.write("sweep.yaml", "a,b\n1,2\n")), "--list"],
            ("sweep {folder}/sweep.yaml: holds a text alone, ", "and no keys such as 'grid:'; give another file"),
        ),
        BadInput(
            "a list of a sweep that no file answers",
            lambda place: ["sweep", str(place.write("sweep.yaml", _swept(place))), "--list"],
            ("run 0 (seed=1): split = test, and dataset.test is not set; give it a CSV file",),
        ),
        BadInput(
            "a config for a sweep",
            lambda place: ["sweep", str(place.world / "config.yaml")],
            (".yaml: is the config of one training, by its sections; write a sweep's file that names it, as config: ",),
        ),
        BadInput(
            "a sweep that is not there",
            typed("sweep", "{folder}/gone.yaml"),
            ("sweep {folder}/gone.yaml: cannot be read", "give an existing sweep file"),
        ),
        BadInput(
            "a sweep whose second run has a table that is not there",
            lambda place: sweep("grid: {dataset.train: [sweep.yaml, gone.csv]}")(place)[:-1],
            ("run 1 (train=gone.csv): dataset.train = {folder}/gone.csv: no such file or folder",),
        ),
        BadInput(
            "a sweep whose second run has a model that is not there",
            lambda place: sweep(f"grid: {{model.blip2: ['{place.world}/blip2', gone/x/y]}}")(place)[:-1],
            ("run 1 (blip2=gone_x_y): model.blip2 = ", "gone/x/y': no such folder", "give"),
        ),
        BadInput("a sweep over what cannot be", sweep("grid: {training.seed: [-1]}"), ("training.seed = -1", "give")),
        BadInput(
            "a sweep of a million runs",
            sweep(f"grid: {{training.seed: {list(range(1000))}, training.num_epochs: {list(range(1, 1001))}}}"),
            ("that is 1000000 runs", "shorten grid or runs"),
        ),
        BadInput(
            "a sweep that no file answers",
            lambda place: sweep("split: test\ngrid: {training.seed: [1]}")(place)[:-1],
            ("run 0 (seed=1): split = test, and dataset.test is not set; give it a CSV file",),
        ),
        BadInput(
            "a sweep without a config",
            lambda place: ["sweep", str(place.write("sweep.yaml", "grid: [1]\nruns: [2]\ngrids: 3\n")), "--list"],
            (
                "config: is missing; give the path of a config",
                "output_dir: is missing; give a folder",
                "grid.0 = 1: ",
                "runs.0 = 2: ",
                "give a list of settings, such as",
                "grids = 3: unknown key; leave it out",
            ),
        ),
        BadInput(
            "a supervisor of a supervisor",
            typed("supervise", "--", "artkv", "supervise", "--", "artkv", "train", "--config", "x"),
            ("supervise: there is another `artkv supervise` in the command; leave one of them out",),
        ),
        BadInput(
            "a page at an empty name", serve("a..b"), ("--host a..b: is no address (", "give one of this machine")
        ),
        BadInput("a page at a name too long", serve("a" * 300), ("--host aaa", "is no address (")),
        BadInput("a page at half a character", serve("\udcff"), ("--host \\udcff: is no address (",)),
        BadInput("a page at a URL", serve("http://localhost"), ("--host http://localhost: is no address (",)),
        BadInput("a sweep of a device", typed("sweep", "/dev/zero"), ("sweep /dev/zero: cannot be read (is a device",)),
        BadInput(
            "a sweep over a section",
            sweep("grid: {training: [{seed: 1}]}"),
            ("sweep {folder}/sweep.yaml: grid.training: is a section of settings; name one of its keys, such as",),
        ),
        BadInput(
            "a sweep's list over a section of a section",
            sweep("runs: [{trainable.lora: {rank: 1}}]"),
            ("sweep {folder}/sweep.yaml: runs.trainable.lora: is a section of settings; name one of its keys",),
        ),
        BadInput(
            "a sweep's key with a character without width",
            sweep("gr\u200bid: {training.seed: [1]}"),
            (r"gr\u200bid = ", "the key holds U+200B (ZERO WIDTH SPACE); type it anew"),
        ),
        BadInput(
            "a plan for more memory than the GPU has",
            typed("plan", "--gpu", "RTX 4060 8GB", "--gpu-memory", "80GiB"),
            ("--gpu-memory with --gpu 'RTX 4060 8GB': 80.0 GiB are more than", "leave one of them out"),
        ),
        BadInput(
            "a run to go on from that is not there",
            typed("train", "--config", "{world}/config.yaml", "--set", "run.output_dir={folder}/r", "--resume", "none"),
            ("none: no checkpoint there", "outputs/demo, or latest or auto for run.output_dir's newest"),
        ),
        BadInput(
            "a sweep into the pictures",
            lambda place: [
                "sweep",
                str(
                    place.write(
                        "sweep.yaml",
                        f"config: {place.world / 'config.yaml'}\noutput_dir: {place.world / 'images'}\n"
                        "grid: {training.seed: [1, 2]}",
                    )
                ),
            ],
            ("sweep.yaml, run 0 (seed=1): run.output_dir = {world}/images/seed=1: is inside dataset.image_root",),
        ),
        BadInput(
            "candidates of nothing but a character without width",
            lambda place: [
                "evaluate",
                "--checkpoint",
                str(place.run()),
                "--choices",
                str(place.write("c.csv", "answer\n\u200b\n")),
            ],
            (r"{folder}/c.csv:2: answer '\u200b' holds nothing that can be seen, but U+200B (ZERO WIDTH SPACE)",),
        ),
        BadInput(
            "a run to go on from with a character without width",
            typed(
                "train",
                "--config",
                "{world}/config.yaml",
                "--set",
                "run.output_dir={folder}/r",
                "--resume",
                "auto\u200b",
            ),
            (r"auto\u200b: no checkpoint there",),
        ),
        BadInput(
            "a question of a character without width",
            typed("ask", "--checkpoint", "{trained}", "{world}/images/val0.png", "\u200b"),
            (r"the question '\u200b' is empty; ask one",),
        ),
        BadInput(
            "a drawing where the system has no files",
            typed("ask", "--checkpoint", "{trained}", "{world}/images/val0.png", "Who?", "--attention", "/proc/x.png"),
            ("--attention /proc/x.png: /proc cannot be written (No such file or directory); give another place",),
        ),
    ],
)
