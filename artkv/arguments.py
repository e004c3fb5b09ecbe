"""The command line's verbs; nothing here takes time to import."""

import argparse
import difflib
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from artkv import __version__
from artkv import verb_options as options
from artkv.failures import ArgumentParser


@dataclass(frozen=True)
class Verb:
    """What a verb's help says, and its options.

    summary: what it does, in the imperative. examples: what can be typed.
    """

    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]


def parse_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The options, with the verb's name as `verb`; help and wrong usage end the process, wrong usage with 2."""
    chosen = next((word for word in given if not word.startswith("-")), None)
    # The chosen verb's options alone: the art encoder's are its settings', which the others need not import.
    parser = make_parser([] if chosen is None else [chosen])
    if chosen is not None and chosen not in VERBS:
        near = difflib.get_close_matches(chosen, VERBS, n=1)
        if (later := next((word for word in given if word in VERBS), None)) is not None and given[0] != chosen:
            parser.error(f"{given[0]} stands before the verb; give the verb first: artkv {later} {given[0]} ...")
        hint = f"did you mean {near[0]!r}?" if near else "see artkv --help"
        parser.error(f"no verb {chosen!r} among {', '.join(VERBS)}; {hint}")
    own = itertools.takewhile(lambda word: word != "--", given)  # another command's are behind it
    one_dash = [word for word in own if re.match("-[a-z]{2}", word)]
    if chosen is not None and one_dash:
        known_options = ArgumentParser(add_help=False)
        VERBS[chosen].add_options(known_options)
        known = re.findall(r"--[a-z][a-z-]+", known_options.format_help())
        for word in one_dash:
            if (meant := f"-{word}").split("=")[0] in known:
                parser.error(f"{word}: options have two dashes; write {meant}")
    return parser.parse_args(given)


def make_parser(with_options: Collection[str]) -> argparse.ArgumentParser:
    """The command line with every verb, and with the options of these; `VERBS` for the whole of it."""
    parser = ArgumentParser(
        prog="artkv",
        description="Trains BLIP-2 to answer questions about paintings, with key/value prefixes from an art encoder.",
        epilog="Exit codes: 0 done, 1 wrong input, or a file that the system refuses, 2 wrong usage, 3 failed run, "
        "memory that is not enough included, 75 stopped by Control-C, SIGTERM, SIGUSR1 or the end of a Slurm job's "
        "time, and saved, 130 interrupted (launchers return codes of their own). Start with: artkv quickstart",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error that is no wrong input; before or after VERB",
    )
    parser.add_argument("--version", action="version", version=f"artkv {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(
            name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog="\n  ".join([f"example{'s' if len(verb.examples) > 1 else ''}:", *verb.examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in with_options:
            verb.add_options(subparser)
    return parser


VERBS = {
    "init": Verb("look at a folder of pictures and questions, and write a config for it", options.init, (
        "artkv init data/my_paintings",
        "artkv init data/my_paintings --image-column Bild --question-column Frage --output paintings.yaml",
    )),
    "train": Verb("train by a config; alone, or under deepspeed, torchrun or srun", options.train, (
        "artkv train --config my.yaml",
        "artkv train --config my.yaml --resume auto --set training.num_epochs=3",
        "deepspeed --num_gpus 8 --module artkv train --config my.yaml",
    )),
    "supervise": Verb("keep a training going: start it again where it died or hangs", options.supervise, (
        "artkv supervise -- deepspeed --num_gpus 8 --module artkv train --config my.yaml --resume auto",
        "artkv supervise --restarts 5 -- srun python -m artkv train --config my.yaml --resume auto",
    )),
    "evaluate": Verb("score a checkpoint, with the prefix on, off or shuffled; or under a launcher", options.evaluate, (
        "artkv evaluate --checkpoint outputs/demo/best",
        "artkv evaluate --checkpoint outputs/demo/best --split test --all-ablations --control outputs/control/best",
        "artkv evaluate --checkpoint outputs/demo/best --split test --choices",
    )),
    "compare": Verb("tell what the prefix of an evaluated run adds: ablations, controls, seeds", options.compare, (
        "artkv compare outputs/demo outputs/control",
        "artkv compare outputs/demo outputs/control outputs/demo_seed7 outputs/control_seed7 --split test",
    )),
    "sweep": Verb("train and compare the runs of a grid or list of settings, with their seeds", options.sweep, (
        "artkv sweep prefix_tokens.yaml",
        "artkv sweep prefix_tokens.yaml --report",
        "artkv sweep prefix_tokens.yaml --run 3",
    )),
    "report": Verb("write one HTML file that shows what the prefix adds, to open and to mail", options.report, (
        "artkv report outputs/demo",
        "artkv report outputs/demo outputs/control --output demo.html",
    )),
    "status": Verb("tell step, rate, time left, last checkpoint and score of a run", options.status, (
        "artkv status outputs/demo",
    )),
    "ask": Verb("answer a question about a picture", options.ask, (
        'artkv ask --checkpoint outputs/demo/best painting.jpg "Which style is this?"',
        'artkv ask --checkpoint outputs/demo/best --prefix off painting.jpg "Which style is this?"',
        'artkv ask --checkpoint outputs/demo/best --attention looks.png painting.jpg "Which style is this?"',
    )),
    "serve": Verb("ask a model from a page in a browser, with the prefix and without, side by side", options.serve, (
        "artkv serve --checkpoint outputs/demo/best",
        "artkv serve --checkpoint outputs/demo/best --port 0",
    )),
    "cache": Verb("compute the frozen encoders' features; alone, or under a launcher", options.cache, (
        "artkv cache --config my.yaml",
        "artkv cache --config my.yaml --split train,val --set frozen.feature_cache=features",
    )),
    "export": Verb("write a checkpoint as one file, a transformers folder or a LAVIS .pth", options.export, (
        "artkv export --checkpoint outputs/demo/best --format adapter --output demo.safetensors",
        "artkv export --checkpoint outputs/demo/best --format transformers --output demo_blip2",
    )),
    "push": Verb("share a trained model on the hub, with its scores and a model card", options.push, (
        "artkv push outputs/demo user/painter --private",
        "artkv push outputs/demo/checkpoints/step_00000500 user/painter --revision early --license apache-2.0 --yes",
    )),
    "check": Verb("list everything in config, data and models that would stop a run", options.check, (
        "artkv check --config my.yaml",
    )),
    "plan": Verb("say what fits a GPU, and what training would choose; needs none", options.plan, (
        "artkv plan",
        "artkv plan --config my.yaml --gpu-memory 8GiB",
        "artkv plan --config my.yaml --gpu 'RTX 4060 8GB' --write",
    )),
    "launch": Verb("write a file that starts a training: for Slurm, ssh, Kubernetes, SkyPilot", options.launch, (
        "artkv launch slurm --output train.sbatch",
        "artkv launch local",
    )),
    "art-encoder": Verb("train an image encoder on WikiArt's styles; alone, or under a launcher", options.art_encoder, (
        "artkv art-encoder --data wikiart --initial-checkpoint efficientnet_b3.pth",
        "artkv art-encoder --data wikiart --initial-checkpoint efficientnet_b3.pth --resume",
        "artkv art-encoder --data wikiart.csv --heads style,genre,artist --architecture convnext_tiny",
        "torchrun --nproc_per_node 4 -m artkv art-encoder --data wikiart --batch-size 256",
    )),
    "quickstart": Verb("make a small world of paintings and run the whole job on it", options.quickstart, (
        "artkv quickstart",
        "artkv quickstart --seed 7 --output-dir outputs/quickstart_7",
        "artkv quickstart --world encoders",
    )),
}  # fmt: skip
