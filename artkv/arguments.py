"""The command line's verbs and their options; nothing here takes time to import."""

import argparse
import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from artkv import __version__
from artkv.argument_values import png_path, some_path, some_text, whole_number
from artkv.failures import ArgumentParser

SPLITS = ("train", "val", "test")
METRICS = ("exact_match", "bleu", "bleu_artquest", "token_f1")


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
        hint = f"did you mean {near[0]!r}?" if near else "see artkv --help"
        parser.error(f"no verb {chosen!r} among {', '.join(VERBS)}; {hint}")
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


def _train(verb: argparse.ArgumentParser) -> None:
    _add_config(verb)
    verb.add_argument(
        "--resume",
        type=some_path,
        metavar="WHERE",
        help="latest: go on from the newest checkpoint of run.output_dir; auto: the same if there is one, "
        "else start; or the path of a checkpoint",
    )
    # Added by `artkv supervise`.
    verb.add_argument("--supervised", metavar="RUN", help=argparse.SUPPRESS)


def _supervise(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--restarts",
        type=whole_number(0, 10_000),
        default=20,
        metavar="N",
        help="most starts after the first one (default 20); an error that comes back at the same step ends it before",
    )
    verb.add_argument(
        "--silence",
        type=whole_number(1, 86_400),
        default=30,
        metavar="SECONDS",
        help="that a rank may always be silent for (default 30); longer where the run has taken longer before",
    )
    verb.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="a launcher, and `artkv train` with its options"
    )


def _evaluate(verb: argparse.ArgumentParser) -> None:
    _add_checkpoint(verb)
    verb.add_argument("--split", choices=SPLITS, default="val", help="which CSV file (default val)")
    verb.add_argument(
        "--prefix",
        choices=("on", "off", "shuffled"),
        default="on",
        help="off: stock cross-attention; shuffled: the prefix of another painting (default on)",
    )
    verb.add_argument(
        "--image", choices=("on", "blank"), default="on", help="blank: a grey picture, the question alone (default on)"
    )
    verb.add_argument(
        "--all-ablations",
        action="store_true",
        help="prefix on, off and shuffled, and the question alone; ends with their comparison",
    )
    verb.add_argument(
        "--control",
        type=some_path,
        metavar="PATH",
        help="with --all-ablations: a checkpoint of a run without a prefix, to be evaluated and compared too",
    )
    verb.add_argument(
        "--choices",
        type=some_path,
        nargs="?",
        const="train",
        metavar="FILE",
        help="choose among few answers by likelihood too: those of each question type in dataset.train, or in this CSV "
        "file (columns answer and question_type)",
    )


def _compare(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs",
        type=some_path,
        metavar="RUN",
        nargs="+",
        help="folders of runs, evaluated: first the one whose prefix is judged, then its control (trained with "
        "kv_modulation.enabled: false), more seeds of either, or others",
    )
    verb.add_argument("--split", choices=SPLITS, help="which (default: the first of test, val and train that is there)")
    verb.add_argument(
        "--metric",
        choices=(*METRICS, "accuracy"),
        default="exact_match",
        help="which score (default exact_match); accuracy: of choices",
    )


def _sweep(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "sweep", type=some_path, metavar="SWEEP", help="a YAML file with config, output_dir, and grid or runs"
    )
    verb.add_argument("--ranks", type=whole_number(1, 1024), help="processes of each run (default: the GPUs, or 1)")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="print the runs and what of them is done, and do nothing")
    which.add_argument("--run", type=whole_number(0), metavar="N", help="do this one alone, as a Slurm array's task")
    which.add_argument("--report", action="store_true", help="report on the runs that are done, and do nothing else")


def _status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=some_path, metavar="RUN", help="the folder of a run, its run.output_dir")


def _ask(verb: argparse.ArgumentParser) -> None:
    _add_checkpoint(verb)
    verb.add_argument("picture", type=some_path, metavar="IMAGE", help="path of a picture")
    verb.add_argument("question", type=some_text, metavar="QUESTION", help='such as "Which style is this?"')
    verb.add_argument("--prefix", choices=("on", "off"), default="on", help="off: without the art encoder's prefix")
    verb.add_argument(
        "--attention", type=png_path, metavar="FILE.png", help="draw where the model looks, with the prefix on and off"
    )


def _serve(verb: argparse.ArgumentParser) -> None:
    _add_checkpoint(verb)
    verb.add_argument(
        "--host",
        type=some_text,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="of this machine, to be reached by others: there is no password (default 127.0.0.1, this machine alone)",
    )
    verb.add_argument(
        "--port",
        type=whole_number(0, 65_535),
        default=7860,
        help="where the page is; 0: any that is free (default 7860)",
    )


def _cache(verb: argparse.ArgumentParser) -> None:
    _add_config(verb)
    verb.add_argument(
        "--split",
        type=_splits,
        default=SPLITS,
        metavar="SPLITS",
        help="whose pictures: some of train,val,test (default: all that the config names)",
    )
    verb.add_argument(
        "--verify", action="store_true", help="read every record and compare its checksum, instead of computing any"
    )


def _export(verb: argparse.ArgumentParser) -> None:
    _add_checkpoint(verb)
    verb.add_argument(
        "--format",
        required=True,
        choices=("adapter", "transformers", "lavis"),
        help="adapter: what was trained, in one .safetensors; transformers: a folder for "
        "Blip2ForConditionalGeneration; lavis: a .pth for Blip2OPT; both with what was "
        "trained merged in, and the prefix generator beside",
    )
    verb.add_argument(
        "--output",
        type=some_path,
        required=True,
        metavar="PATH",
        help="file.safetensors, folder or file.pth; must not be there yet",
    )
    verb.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        choices=("vit", "opt"),
        help="with lavis: what LAVIS is to load from its own files, as its published checkpoints do",
    )


def _plan(verb: argparse.ArgumentParser) -> None:
    _add_config(verb, is_required=False)
    verb.add_argument(
        "--write",
        type=lambda text: some_path(text) if text else text,
        nargs="?",
        const="",
        metavar="FILE",
        help="put the choice into this YAML file, whose other lines stay (default: that of --config)",
    )
    verb.add_argument(
        "--gpu-memory", metavar="SIZE", help="memory to fit into, such as 8GiB (default: --gpu's, or what is free here)"
    )
    verb.add_argument("--gpu", metavar="NAME", help="a listed GPU, such as 'RTX 4060 8GB' (default: by memory)")
    verb.add_argument(
        "--world-size",
        type=whole_number(1, 65_536),
        default=1,
        help="ranks that share the optimizer's state (default 1)",
    )
    verb.add_argument(
        "--text-tokens",
        type=whole_number(1, 65_536),
        default=32,
        help="tokens of the longest question with its answer (default 32)",
    )
    verb.add_argument(
        "--paintings",
        type=whole_number(1),
        help="paintings in a micro-batch (default: one for each question, the worst case)",
    )


def _report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=some_path, metavar="RUN", help="the folder of a run, its run.output_dir")
    verb.add_argument(
        "controls",
        type=some_path,
        metavar="CONTROL",
        nargs="*",
        help="folders of runs that were trained without a prefix",
    )
    verb.add_argument("--split", choices=SPLITS, help="whose answers (default: test, val or train, the first answered)")
    verb.add_argument("--output", type=some_path, metavar="FILE", help="the HTML file (default: report.html in RUN)")
    verb.add_argument(
        "--pictures",
        type=whole_number(0),
        metavar="N",
        help="most pictures in the file (default: as many as can be mailed)",
    )
    verb.add_argument(
        "--attention",
        type=whole_number(0),
        metavar="N",
        help="paintings with maps of where the model looks, for which it is loaded (default: 12 if it can be; 0: none)",
    )
    _add_overrides(verb)


def _art_encoder(verb: argparse.ArgumentParser) -> None:
    from artkv.art_encoder.arguments import add_arguments

    add_arguments(verb)


def _quickstart(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--output-dir",
        type=some_path,
        default="outputs/quickstart",
        help="folder of the world and its runs (default outputs/quickstart)",
    )
    verb.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=1337, help="everything follows from it (default 1337)"
    )
    verb.add_argument("--ranks", type=whole_number(1, 1024), default=2, help="processes that train (default 2)")
    _add_overrides(verb)


def _splits(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if not set(chosen) <= set(SPLITS):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a list of {', '.join(SPLITS)}, such as train,val")
    return chosen


def _add_config(verb: argparse.ArgumentParser, is_required: bool = True) -> None:
    verb.add_argument(
        "--config",
        type=some_path,
        required=is_required,
        metavar="FILE",
        help="YAML settings; in artkv/config/recipes/ minimal.yaml is one to start from, artquest.yaml has every key"
        + ("" if is_required else " (default: artquest.yaml)"),
    )
    _add_overrides(verb)


def _add_checkpoint(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--checkpoint",
        type=some_path,
        required=True,
        metavar="PATH",
        help="a checkpoint's folder, a run's (its newest), its best or checkpoints/latest, or an exported adapter",
    )
    _add_overrides(verb)


def _add_overrides(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="overrides a setting; may be given again; a path or a text is taken as it stands, any other value is YAML",
    )


VERBS = {
    "train": Verb("train by a config; alone, or under deepspeed, torchrun or srun", _train, (
        "artkv train --config my.yaml",
        "artkv train --config my.yaml --resume auto --set training.num_epochs=3",
        "deepspeed --num_gpus 8 --module artkv train --config my.yaml",
    )),
    "supervise": Verb("keep a training going: start it again where it died or hangs; around any launcher", _supervise, (
        "artkv supervise -- deepspeed --num_gpus 8 --module artkv train --config my.yaml --resume auto",
        "artkv supervise --restarts 5 -- srun python -m artkv train --config my.yaml --resume auto",
    )),
    "evaluate": Verb("score a checkpoint, with the prefix on, off or shuffled; alone, or under a launcher", _evaluate, (
        "artkv evaluate --checkpoint outputs/demo/best",
        "artkv evaluate --checkpoint outputs/demo/best --split test --all-ablations --control outputs/control/best",
        "artkv evaluate --checkpoint outputs/demo/best --split test --choices",
    )),
    "compare": Verb("tell what the prefix of an evaluated run adds, against ablations, controls and seeds", _compare, (
        "artkv compare outputs/demo outputs/control",
        "artkv compare outputs/demo outputs/control outputs/demo_seed7 outputs/control_seed7 --split test",
    )),
    "sweep": Verb("train and compare the runs of a grid or list of settings, with their seeds", _sweep, (
        "artkv sweep prefix_tokens.yaml",
        "artkv sweep prefix_tokens.yaml --report",
        "artkv sweep prefix_tokens.yaml --run 3",
    )),
    "report": Verb("write one HTML file that shows what the prefix adds, to open and to mail", _report, (
        "artkv report outputs/demo",
        "artkv report outputs/demo outputs/control --output demo.html",
    )),
    "status": Verb("tell step, rate, time left, last checkpoint and score of a run", _status, (
        "artkv status outputs/demo",
    )),
    "ask": Verb("answer a question about a picture", _ask, (
        'artkv ask --checkpoint outputs/demo/best painting.jpg "Which style is this?"',
        'artkv ask --checkpoint outputs/demo/best --prefix off painting.jpg "Which style is this?"',
        'artkv ask --checkpoint outputs/demo/best --attention looks.png painting.jpg "Which style is this?"',
    )),
    "serve": Verb("ask a model from a page in a browser, with the prefix and without, side by side", _serve, (
        "artkv serve --checkpoint outputs/demo/best",
        "artkv serve --checkpoint outputs/demo/best --port 0",
    )),
    "cache": Verb("compute the frozen encoders' features; alone, or under a launcher", _cache, (
        "artkv cache --config my.yaml",
        "artkv cache --config my.yaml --split train,val --set frozen.feature_cache=features",
    )),
    "export": Verb("write a checkpoint as one file, a transformers folder or a LAVIS .pth", _export, (
        "artkv export --checkpoint outputs/demo/best --format adapter --output demo.safetensors",
        "artkv export --checkpoint outputs/demo/best --format transformers --output demo_blip2",
    )),
    "check": Verb("list everything in config, data and models that would stop a run", _add_config, (
        "artkv check --config my.yaml",
    )),
    "plan": Verb("say what fits a GPU, and what training would choose; needs none", _plan, (
        "artkv plan",
        "artkv plan --config my.yaml --gpu-memory 8GiB",
        "artkv plan --config my.yaml --gpu 'RTX 4060 8GB' --write",
    )),
    "art-encoder": Verb("train an EfficientNet on WikiArt's styles", _art_encoder, (
        "artkv art-encoder --data wikiart --initial-checkpoint efficientnet_b3.pth",
        "artkv art-encoder --data wikiart --initial-checkpoint efficientnet_b3.pth --resume",
    )),
    "quickstart": Verb("make a small world of paintings and run the whole job on it", _quickstart, (
        "artkv quickstart",
        "artkv quickstart --seed 7 --output-dir outputs/quickstart_7",
    )),
}  # fmt: skip
