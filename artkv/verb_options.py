"""The options of each verb of the command line, one function a verb; nothing here takes time to import."""

import argparse
from collections.abc import Callable
from typing import Any

from artkv.argument_values import file_path, png_path, some_path, some_prefix, some_text, whole_number

SPLITS = ("train", "val", "test")
# Of an option that is another spelling of a `--set`; argparse gives all that share a place one list.
_AS_SET: dict[str, Any] = {"dest": "set", "action": "append", "default": [], "metavar": "N"}
METRICS = ("exact_match", "bleu", "bleu_artquest", "token_f1")


def init(verb: argparse.ArgumentParser) -> None:
    """Of `artkv init`."""
    from artkv.starting.arguments import add_arguments

    add_arguments(verb)


def train(verb: argparse.ArgumentParser) -> None:
    """Of `artkv train`."""
    _add_config(verb)
    verb.add_argument(
        "--resume",
        type=some_path,
        metavar="WHERE",
        help="latest: go on from the newest checkpoint of run.output_dir; auto: the same if there is one, "
        "else start; or the path of a checkpoint",
    )
    verb.add_argument("--epochs", type=_setting("training.num_epochs"), **_AS_SET, help="--set training.num_epochs=N")
    verb.add_argument(
        "--limit",
        type=_setting("dataset.limit"),
        **_AS_SET,
        help="--set dataset.limit=N: the first N paintings of each CSV file, for a try-out",
    )
    # Added by `artkv supervise`.
    verb.add_argument("--supervised", metavar="RUN", help=argparse.SUPPRESS)


def supervise(verb: argparse.ArgumentParser) -> None:
    """Of `artkv supervise`."""
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


def evaluate(verb: argparse.ArgumentParser) -> None:
    """Of `artkv evaluate`."""
    _add_checkpoint(verb)
    verb.add_argument("--split", choices=SPLITS, default="val", help="which CSV file (default val)")
    verb.add_argument(
        "--prefix",
        type=some_prefix,
        default=("on", None),
        metavar="on|off|shuffled|off:NAME|shuffled:NAME",
        help="off: stock cross-attention; shuffled: the prefix of another painting; with :NAME the part of this art "
        "encoder alone, where there are several (default on)",
    )
    verb.add_argument(
        "--image", choices=("on", "blank"), default="on", help="blank: a grey picture, the question alone (default on)"
    )
    verb.add_argument(
        "--all-ablations",
        action="store_true",
        help="prefix on, off and shuffled, each of several art encoders off and shuffled, and the question alone; ends "
        "with their comparison",
    )
    verb.add_argument(
        "--control",
        type=some_path,
        action="append",
        default=[],
        metavar="PATH",
        help="with --all-ablations: a checkpoint of a run without a prefix, or without some of its art encoders, to be "
        "evaluated and compared too; may be given again",
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


def compare(verb: argparse.ArgumentParser) -> None:
    """Of `artkv compare`."""
    verb.add_argument(
        "runs",
        type=some_path,
        metavar="RUN",
        nargs="+",
        help="folders of runs, evaluated: first the one whose prefix is judged, then its control (trained with "
        "kv_modulation.enabled: false), runs without some of its art encoders, more seeds of any, or others",
    )
    verb.add_argument("--split", choices=SPLITS, help="which (default: the first of test, val and train that is there)")
    verb.add_argument(
        "--metric",
        choices=(*METRICS, "accuracy"),
        default="exact_match",
        help="which score (default exact_match); accuracy: of choices",
    )


def sweep(verb: argparse.ArgumentParser) -> None:
    """Of `artkv sweep`."""
    verb.add_argument(
        "sweep", type=some_path, metavar="SWEEP", help="a YAML file with config, output_dir, and grid or runs"
    )
    verb.add_argument("--ranks", type=whole_number(1, 1024), help="processes of each run (default: the GPUs, or 1)")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="print the runs and what of them is done, and do nothing")
    which.add_argument("--run", type=whole_number(0), metavar="N", help="do this one alone, as a Slurm array's task")
    which.add_argument("--report", action="store_true", help="report on the runs that are done, and do nothing else")


def status(verb: argparse.ArgumentParser) -> None:
    """Of `artkv status`."""
    verb.add_argument("run", type=some_path, metavar="RUN", help="the folder of a run, its run.output_dir")


def ask(verb: argparse.ArgumentParser) -> None:
    """Of `artkv ask`."""
    _add_checkpoint(verb)
    verb.add_argument("picture", type=some_path, metavar="IMAGE", help="path of a picture")
    verb.add_argument("question", type=some_text, metavar="QUESTION", help='such as "Which style is this?"')
    verb.add_argument("--prefix", choices=("on", "off"), default="on", help="off: without the art encoder's prefix")
    verb.add_argument(
        "--attention", type=png_path, metavar="FILE.png", help="draw where the model looks, with the prefix on and off"
    )


def serve(verb: argparse.ArgumentParser) -> None:
    """Of `artkv serve`."""
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


def cache(verb: argparse.ArgumentParser) -> None:
    """Of `artkv cache`."""
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


def export(verb: argparse.ArgumentParser) -> None:
    """Of `artkv export`."""
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


def push(verb: argparse.ArgumentParser) -> None:
    """Of `artkv push`."""
    verb.add_argument("run", type=some_path, metavar="RUN", help="a run's folder, for its best, or a checkpoint's")
    verb.add_argument("name", type=some_text, metavar="USER/NAME", help="on the hub; made where it is missing")
    verb.add_argument("--private", action="store_true", help="for you alone, and whom you name on its page")
    verb.add_argument("--revision", type=some_text, metavar="BRANCH", help="a branch of it (default: main)")
    verb.add_argument(
        "--base-model",
        type=some_text,
        metavar="ID",
        help="of the frozen weights on the hub, where model.blip2 is a folder or file",
    )
    verb.add_argument("--license", type=some_text, metavar="ID", help="as the hub spells it, such as apache-2.0")
    verb.add_argument("--leave-out-art-encoder", action="store_true", help="where you may not share its weights")
    verb.add_argument("--yes", action="store_true", help="do not ask before anything is uploaded")


def check(verb: argparse.ArgumentParser) -> None:
    """Of `artkv check`."""
    _add_config(verb)


def plan(verb: argparse.ArgumentParser) -> None:
    """Of `artkv plan`."""
    _add_config(verb, is_required=False)
    verb.add_argument(
        "--write",
        type=lambda text: file_path(text) if text else text,
        nargs="?",
        const="",
        metavar="FILE",
        help="put the choice into this YAML file, whose other lines stay (default: that of --config)",
    )
    verb.add_argument(
        "--gpu-memory", metavar="SIZE", help="memory to fit into, such as 8GiB (default: --gpu's, or what is free here)"
    )
    verb.add_argument(
        "--gpu", metavar="NAME", help="a listed GPU, such as 'RTX 4060 8GB' (default: this machine's, or by memory)"
    )
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


def report(verb: argparse.ArgumentParser) -> None:
    """Of `artkv report`."""
    verb.add_argument("run", type=some_path, metavar="RUN", help="the folder of a run, its run.output_dir")
    verb.add_argument(
        "controls",
        type=some_path,
        metavar="CONTROL",
        nargs="*",
        default=[],  # else argparse tells it as one that is required
        help="folders of runs that were trained without a prefix",
    )
    verb.add_argument("--split", choices=SPLITS, help="whose answers (default: test, val or train, the first answered)")
    verb.add_argument("--output", type=file_path, metavar="FILE", help="the HTML file (default: report.html in RUN)")
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


def art_encoder(verb: argparse.ArgumentParser) -> None:
    """Of `artkv art-encoder`."""
    from artkv.art_encoder.arguments import add_arguments

    add_arguments(verb)


def launch(verb: argparse.ArgumentParser) -> None:
    """Of `artkv launch`."""
    from artkv.launch_files.arguments import add_arguments

    add_arguments(verb)


def quickstart(verb: argparse.ArgumentParser) -> None:
    """Of `artkv quickstart`."""
    verb.add_argument(
        "--output-dir",
        type=some_path,
        help="folder of the world and its runs (default outputs/quickstart, or outputs/quickstart_encoders)",
    )
    verb.add_argument(
        "--world",
        choices=("styles", "encoders"),
        default="styles",
        help="styles: what the prefix does, one run and its control (the default); encoders: which art encoder and "
        "injection can tell what, a sweep of six combinations",
    )
    verb.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=1337, help="everything follows from it (default 1337)"
    )
    verb.add_argument("--ranks", type=whole_number(1, 1024), help="processes of each training (default 1)")
    _add_overrides(verb)


def _setting(key: str) -> Callable[[str], str]:
    """Makes a whole number what `--set` takes."""
    number = whole_number(1)
    return lambda text: f"{key}={number(text)}"


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
        help="a checkpoint's folder, a run's (its newest), its best or checkpoints/latest, an adapter, or a hub id",
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
