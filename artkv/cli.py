"""The command line: one function a verb, wiring only."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from artkv import __version__
from artkv.errors import Preempted, RunFailed, UserError

# Exit codes. 2, wrong usage, is argparse's own.
DONE = 0
WRONG_INPUT = 1
RUN_FAILED = 3
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later

_SPLITS = ("train", "val", "test")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code; a wrong input is one message and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The DeepSpeed launcher puts --local_rank=N before the verb; LOCAL_RANK says the same.
    given = [argument for argument in given if not argument.startswith("--local_rank=")]
    options = _parser(chosen=next((word for word in given if not word.startswith("-")), None)).parse_args(given)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UserError as error:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        if rank == "0" or not error.on_all_ranks:
            print(f"artkv: {'' if rank == '0' else f'[rank {rank}] '}{error}", file=sys.stderr)
        return WRONG_INPUT
    except RunFailed as error:
        print(f"artkv: run failed: {error}", file=sys.stderr)
        return RUN_FAILED
    except Preempted as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"artkv: {stop}, which is saved; go on with --resume auto", file=sys.stderr)
        return PREEMPTED
    except Exception:
        traceback.print_exc()
        return RUN_FAILED


def train(options: argparse.Namespace) -> int:
    """Trains."""
    from artkv.training.preemption import StopRequests

    stops = StopRequests()
    stops.listen(signal.SIGUSR1)  # before the imports, which take seconds

    from artkv.config import load_config
    from artkv.distributed import process_group
    from artkv.training.run import train as run_training

    config = load_config(options.config, options.set)
    with process_group(config.distributed.timeout_minutes) as world:
        # Not before: a rank whose others never come waits in C++, where no handler of Python's runs, and has nothing
        # to save.
        stops.listen(signal.SIGTERM)
        progress = run_training(config, options.resume, world, stops)
        if world.is_main:
            best = progress.best_exact_match
            score = "" if best is None else f"; best validation exact match {best:.3f} at step {progress.best_step}"
            print(f"done after {progress.step} steps in {config.run.output_dir}{score}")
    return DONE


def evaluate(options: argparse.Namespace) -> int:
    """Scores a checkpoint."""
    from artkv.api import evaluate as run_evaluation
    from artkv.config import override_config
    from artkv.distributed import process_group
    from artkv.evaluation.answering import ALL_ABLATIONS, Ablation
    from artkv.evaluation.scores import format_table
    from artkv.run_folder.checkpoint import read_config, resolve_checkpoint

    folder = resolve_checkpoint(Path(options.checkpoint))
    config = override_config(read_config(folder), options.set)
    ablations = [Ablation(options.prefix, options.image)]
    if options.all_ablations:  # a control has no prefix that could be shuffled
        ablations = [a for a in ALL_ABLATIONS if config.kv_modulation.enabled or a.prefix != "shuffled"]
    with process_group(config.distributed.timeout_minutes) as world:
        results = run_evaluation(config, folder, options.split, ablations, world)
        if world.is_main:
            print(format_table(results))
    return DONE


def status(options: argparse.Namespace) -> int:
    """Tells how far a run is."""
    from artkv.run_folder.status import format_status, read_status

    print(format_status(read_status(Path(options.run))))
    return DONE


def ask(options: argparse.Namespace) -> int:
    """Answers one question about one picture."""
    from artkv.api import load_model
    from artkv.config import override_config
    from artkv.run_folder.checkpoint import read_config, resolve_checkpoint

    folder = resolve_checkpoint(Path(options.checkpoint))
    config = override_config(read_config(folder), options.set)
    print(load_model(config, folder).ask(options.picture, options.question, options.prefix == "on"))
    return DONE


def cache(options: argparse.Namespace) -> int:
    """Computes the frozen encoders' features."""
    from artkv.api import cache as run_cache
    from artkv.config import load_config
    from artkv.distributed import process_group
    from artkv.feature_cache import cache_settings, verify_store

    config = load_config(options.config, options.set)
    with process_group(config.distributed.timeout_minutes) as world:
        if options.verify:
            folder = cache_settings(config).folder
            verified = verify_store(folder, world)
            summary = f"{folder}: {verified} records are what was written"
        else:
            summary = run_cache(config, options.split, world)
        if world.is_main:
            print(summary)
    return DONE


def export(options: argparse.Namespace) -> int:
    """Writes a checkpoint for others to load."""
    from artkv.config import override_config
    from artkv.export import export as write_export
    from artkv.run_folder.checkpoint import read_config, resolve_checkpoint

    folder = resolve_checkpoint(Path(options.checkpoint))
    config = override_config(read_config(folder), options.set)
    for path in write_export(folder, config, options.format, Path(options.output).expanduser(), options.leave_out):
        print(path)
    return DONE


def check(options: argparse.Namespace) -> int:
    """Lists everything that would stop a run."""
    from artkv.config import load_config
    from artkv.distributed import single_process
    from artkv.feature_cache import cache_settings, find_cache_problems
    from artkv.preflight import find_obstacles

    config = load_config(options.config, options.set)
    obstacles = find_obstacles(config)
    if config.frozen.feature_cache is not None:
        obstacles += [
            p for p in find_cache_problems(cache_settings(config), single_process().device) if p not in obstacles
        ]
    for obstacle in obstacles:
        print(obstacle, file=sys.stderr)
    if obstacles:
        print(f"artkv: {len(obstacles)} problem{'s' if len(obstacles) > 1 else ''} found", file=sys.stderr)
        return WRONG_INPUT
    print("artkv: no problems found")
    return DONE


def plan(options: argparse.Namespace) -> int:
    """Predicts memory and transfer."""
    from artkv.planning.table import run

    run(options)
    return DONE


def art_encoder(options: argparse.Namespace) -> int:
    """Trains the art encoder."""
    from artkv.art_encoder.arguments import settings_from_arguments
    from artkv.art_encoder.training import train_art_encoder

    result = train_art_encoder(settings_from_arguments(options))
    print(f"best top-1 {result.scores.top1:.3f} in epoch {result.epoch}; efficientnet.checkpoint: {result.checkpoint}")
    return DONE


def quickstart(options: argparse.Namespace) -> int:
    """Makes the embedded world and runs the whole job on it."""
    from artkv.quickstart.run import run_quickstart

    run_quickstart(Path(options.output_dir), options.seed, options.ranks, options.set)
    return DONE


def _parser(chosen: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="artkv",
        description="Trains BLIP-2 to answer questions about paintings, with key/value prefixes from an art encoder.",
        epilog="Exit codes: 0 done, 1 wrong input, 2 wrong usage, 3 failed run, 75 stopped by SIGTERM, SIGUSR1 or the "
        "end of a Slurm job's time, and saved (launchers return codes of their own). Start with: artkv quickstart",
    )
    parser.add_argument("--version", action="version", version=f"artkv {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _add_verb(verbs, "train", train, "train by a config; alone, or under deepspeed, torchrun or srun")
    _add_config(verb)
    verb.add_argument(
        "--resume",
        metavar="WHERE",
        help="latest: go on from the newest checkpoint of run.output_dir; auto: the same if there is one, "
        "else start; or the path of a checkpoint",
    )

    verb = _add_verb(verbs, "evaluate", evaluate, "score a checkpoint, with the prefix on, off or shuffled")
    _add_checkpoint(verb)
    verb.add_argument("--split", choices=_SPLITS, default="val", help="which CSV file (default val)")
    verb.add_argument(
        "--prefix",
        choices=("on", "off", "shuffled"),
        default="on",
        help="off: stock cross-attention; shuffled: the prefix of another painting (default on)",
    )
    verb.add_argument(
        "--image",
        choices=("on", "blank"),
        default="on",
        help="blank: a grey picture, the question alone (default on)",
    )
    verb.add_argument(
        "--all-ablations", action="store_true", help="prefix on, off and shuffled, and the question alone"
    )

    verb = _add_verb(verbs, "status", status, "tell step, rate, time left, last checkpoint and score of a run")
    verb.add_argument("run", metavar="RUN", help="the folder of a run, its run.output_dir")

    verb = _add_verb(verbs, "ask", ask, "answer a question about a picture")
    _add_checkpoint(verb)
    verb.add_argument("picture", metavar="IMAGE", help="path of a picture")
    verb.add_argument("question", metavar="QUESTION", help='such as "Which style is this?"')
    verb.add_argument("--prefix", choices=("on", "off"), default="on", help="off: without the art encoder's prefix")

    verb = _add_verb(verbs, "cache", cache, "compute the frozen encoders' features; alone, or under a launcher")
    _add_config(verb)
    verb.add_argument(
        "--split",
        type=_splits,
        default=_SPLITS,
        metavar="SPLITS",
        help="whose pictures: some of train,val,test (default: all that the config names)",
    )
    verb.add_argument(
        "--verify", action="store_true", help="read every record and compare its checksum, instead of computing any"
    )

    verb = _add_verb(verbs, "export", export, "write a checkpoint as one file, a transformers folder or a LAVIS .pth")
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
        "--output", required=True, metavar="PATH", help="file.safetensors, folder or file.pth; must not be there yet"
    )
    verb.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        choices=("vit", "opt"),
        help="with lavis: what LAVIS is to load from its own files, as its published checkpoints do",
    )

    verb = _add_verb(verbs, "check", check, "list everything in config, data and models that would stop a run")
    _add_config(verb)

    verb = _add_verb(verbs, "plan", plan, "predict memory and transfer of each mode for a GPU, without one")
    if chosen == "plan":  # its arguments take seconds of imports that other verbs' help need not wait for
        from artkv.planning.table import add_arguments

        _add_config(verb)
        add_arguments(verb)

    verb = _add_verb(verbs, "art-encoder", art_encoder, "train an EfficientNet on WikiArt's styles")
    if chosen == "art-encoder":
        from artkv.art_encoder.arguments import add_arguments as add_art_encoder_arguments

        add_art_encoder_arguments(verb)

    verb = _add_verb(verbs, "quickstart", quickstart, "make a small world of paintings and run the whole job on it")
    verb.add_argument(
        "--output-dir",
        default="outputs/quickstart",
        help="folder of the world and its runs (default outputs/quickstart)",
    )
    verb.add_argument("--seed", type=_whole_number(0), default=1337, help="everything follows from it (default 1337)")
    verb.add_argument("--ranks", type=_whole_number(1), default=2, help="processes that train (default 2)")
    _add_overrides(verb)
    return parser


def _splits(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if not set(chosen) <= set(_SPLITS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(_SPLITS)}, such as train,val")
    return chosen


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return parse


def _add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    verb.set_defaults(command=command)
    return verb


def _add_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", required=True, metavar="FILE", help="YAML settings; see artkv/config/recipes/artquest.yaml"
    )
    _add_overrides(verb)


def _add_checkpoint(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--checkpoint",
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
        help="overrides a setting; may be given again; the value is YAML",
    )
