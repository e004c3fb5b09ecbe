"""The command line: one function a verb, wiring only."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from artkv import shell
from artkv.argument_values import check_export_output, check_plan_file
from artkv.arguments import parse_arguments
from artkv.failures import (
    DONE,
    RUN_FAILED,
    WRONG_INPUT,
    check_surroundings,
    exit_code,
    flush_output,
    for_terminal,
    let_output_pass,
    rank,
    tell,
)
from artkv.files import check_folder_writable
from artkv.given_checkpoints import open_controls, open_given
from artkv.heavy_imports import heavy_imports
from artkv.launch_files.arguments import launch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code; what ends it early is one message and no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    let_output_pass()
    shell.keep_bars_to_terminals()
    verb, debug = None, "--debug" in given
    try:
        check_surroundings(os.environ)
        # The DeepSpeed launcher puts --local_rank=N before the verb; LOCAL_RANK says the same.
        options = parse_arguments(
            [word for word in given if not word.startswith("--local_rank=") and word != "--debug"]
        )
        verb = options.verb
        code = _COMMANDS[verb](options)
        flush_output()
        return code
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, verb, debug)


# In each verb the config or the checkpoint is read first, and what takes seconds to import comes after: who mistyped a
# path is told at once.


def init(options: argparse.Namespace) -> int:
    """Writes the config of a training on a folder's pictures and questions."""
    from artkv.starting.arguments import init_options

    asked = init_options(options)

    from artkv.starting.init import init as write_config

    report = write_config(asked)
    for heading, sentences in (("found", report.found), ("assumed", report.assumed), ("not used", report.unused)):
        for sentence in sentences:
            _say(f"{heading}: {sentence}")
    output = shell.seen_by_caller(asked.output)
    _say(f"written: {output}\nnext: {shell.command('artkv', 'check', '--config', asked.output)}")
    return DONE


def train(options: argparse.Namespace) -> int:
    """Trains."""
    from artkv.training.preemption import StopRequests

    stops = StopRequests()
    stops.listen(signal.SIGUSR1)  # before the imports, which take seconds

    from artkv.run_folder.heartbeat import heartbeat

    supervised = None if options.supervised is None else Path(options.supervised)
    with heartbeat(supervised, int(rank()) if rank().isdecimal() else 0) as alive:
        from artkv.config import load_config

        config = load_config(options.config, options.set)

        with heavy_imports():
            from artkv.distributed import process_group
            from artkv.training.run import train as run_training

        alive.beat()
        with process_group(config.distributed.timeout_minutes) as world:
            # Not before: a rank whose others never come waits in C++, where no handler of Python's runs, and has
            # nothing to save.
            stops.listen(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            alive.beat()
            progress = run_training(config, options.resume, world, stops, alive)
            if world.is_main:
                best = progress.best_exact_match
                score = "" if best is None else f"; best validation exact match {best:.3f} at step {progress.best_step}"
                _say(f"done after {progress.step} steps in {config.run.output_dir}{score}")
                if shell.has_person():
                    _say(shell.next_commands(config))
    return DONE


def supervise(options: argparse.Namespace) -> int:
    """Keeps a training going."""
    from artkv.supervisor.supervising import Settings, supervise

    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    return supervise(Settings(words, options.restarts, options.silence))


def evaluate(options: argparse.Namespace) -> int:
    """Scores a checkpoint, and compares its ablations where they are all asked for."""
    checkpoint, config = open_given(options, options.checkpoint)
    controls = open_controls(options, checkpoint, config)

    with heavy_imports():
        from artkv.api import evaluate as run_evaluation
        from artkv.distributed import process_group
        from artkv.evaluation.answering import AS_TRAINED, Ablation, all_ablations
        from artkv.evaluation.compared_runs import compare_runs
        from artkv.evaluation.run_roles import Run
        from artkv.evaluation.scores import format_calibration, format_extras, format_table
        from artkv.evaluation.verdicts import format_comparison

    prefix, encoder = options.prefix
    ablations = all_ablations(config) if options.all_ablations else [Ablation(prefix, options.image, encoder)]
    with process_group(config.distributed.timeout_minutes) as world:
        results = run_evaluation(checkpoint, options.split, ablations, config, world, options.choices)
        runs, columns = [Run(checkpoint.run_dir, config)], dict(results)
        for name, (control, its_config) in controls.items():
            own = run_evaluation(control, options.split, [AS_TRAINED], its_config, world, options.choices)
            runs.append(Run(control.run_dir, its_config))
            columns[name] = own[AS_TRAINED.name]
        if world.is_main:
            print(format_table(columns))
            chose = {name: scores.choices for name, scores in columns.items() if scores.choices is not None}
            if chose:
                print(f"\n{format_table(chose, 'accuracy')}\n\n{format_calibration(chose)}")
            if extras := format_extras(columns):
                print(f"\n{extras}")
            if options.all_ablations:
                comparison, path = compare_runs(runs, options.split, "exact_match")
                _say(f"\n{format_comparison(comparison)}\n\n{path.name}: {shell.seen_by_caller(path)}")
                if shell.has_person() and checkpoint.run is not None:
                    _say(f"as a page: {shell.command('artkv', 'report', *(run.folder for run in runs))}")
            names = ", ".join(f"{options.split}-{name}" for name in results)
            _say(f"predictions.csv and metrics.json: in {shell.seen_by_caller(checkpoint.run_dir / 'eval')}, {names}")
    return DONE


def compare(options: argparse.Namespace) -> int:
    """Tells what the prefix of a run adds, from evaluations that are there."""
    from artkv.evaluation.run_roles import open_run

    runs = [open_run(Path(folder)) for folder in options.runs]

    from artkv.evaluation.compared_runs import compare_runs
    from artkv.evaluation.verdicts import format_comparison

    comparison, path = compare_runs(runs, options.split, options.metric)
    _say(f"{format_comparison(comparison)}\n\n{path.name}: {shell.seen_by_caller(path)}")
    return DONE


def sweep(options: argparse.Namespace) -> int:
    """Trains and compares the runs of a sweep."""
    from artkv.sweep.plan import read_sweep

    plan = read_sweep(Path(options.sweep))

    from artkv.sweep.reporting import report_on
    from artkv.sweep.running import check_folders, check_split, describe, do_runs, is_answered

    if not options.report:
        check_split(plan)
    if options.list:
        _say("\n".join(describe(plan)))
        return DONE
    failed: dict[int, str] = {}
    check_folder_writable(plan.output_dir, f"sweep {plan.path}: output_dir = {plan.output_dir}")
    if not options.report:
        check_folders(plan)
        failed = do_runs(plan, plan.runs if options.run is None else [plan.run(options.run)], options.ranks)
    # Where all failed there is nothing to report, and why they did is told.
    if options.run is None and (not failed or any(is_answered(plan, run) for run in plan.runs)):
        text, paths = report_on(plan)
        _say(text)
        _say(f"written: {', '.join(str(shell.seen_by_caller(path)) for path in paths)}")
    for index, message in failed.items():
        tell(f"run failed: {index} ({plan.runs[index].name}): {message}")
    return RUN_FAILED if failed else DONE


def status(options: argparse.Namespace) -> int:
    """Tells how far a run is."""
    from artkv.run_folder.status import format_status, read_status

    _say(format_status(read_status(Path(options.run))))
    return DONE


def report(options: argparse.Namespace) -> int:
    """Writes a run's report."""
    from artkv.report.writing import ReportSettings, write_report

    settings = ReportSettings(
        run_dir=Path(options.run),
        controls=[Path(control) for control in options.controls],
        split=options.split,
        output=None if options.output is None else Path(options.output),
        pictures=options.pictures,
        attention=options.attention,
        overrides=options.set,
    )
    path = write_report(settings)
    _say(f"{shell.seen_by_caller(path)}: {path.stat().st_size / 1e6:.1f} MB, open it in a browser")
    return DONE


def ask(options: argparse.Namespace) -> int:
    """Answers one question about one picture."""
    from artkv.single_question import ask as ask_once

    ask_once(options, _say)
    return DONE


def serve(options: argparse.Namespace) -> int:
    """Asks a trained model from a page in a browser."""
    checkpoint, config = open_given(options, options.checkpoint)
    for ending in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored where a script started this behind itself
        signal.signal(ending, signal.default_int_handler)
    try:
        from artkv.serve.server import PageServer

        with PageServer(options.host, options.port) as server:
            with heavy_imports():
                from artkv.api import load_model
                from artkv.serve.asking import AskedModel

            name = checkpoint.hub_id or f"{checkpoint.run_dir.name}/{checkpoint.path.name}"
            model = AskedModel(load_model(config, checkpoint), name)
            if not server.is_loopback:
                print("artkv: without a password, to whoever reaches this machine", file=sys.stderr)
            print(f"artkv: serves {server.url}; Ctrl-C ends it", flush=True)
            server.serve(model)
    except KeyboardInterrupt:
        return DONE


def cache(options: argparse.Namespace) -> int:
    """Computes the frozen encoders' features."""
    from artkv.config import load_config

    config = load_config(options.config, options.set)

    with heavy_imports():
        from artkv.api import cache as run_cache
        from artkv.distributed import process_group
        from artkv.feature_cache import verify_store
        from artkv.session import Session

    with process_group(config.distributed.timeout_minutes) as world:
        if options.verify:
            folder = Session(config, world).cache_settings.folder
            verified = verify_store(folder, world)
            summary = f"{folder}: {verified} records are what was written"
        else:
            summary = run_cache(config, options.split, world)
        if world.is_main:
            _say(summary)
    return DONE


def export(options: argparse.Namespace) -> int:
    """Writes a checkpoint for others to load."""
    check_export_output(options.output, options.format)
    checkpoint, config = open_given(options, options.checkpoint)

    with heavy_imports():
        from artkv.export import export as write_export
    for path in write_export(checkpoint, config, options.format, Path(options.output), options.leave_out):
        _say(str(path))
    return DONE


def push(options: argparse.Namespace) -> int:
    """Shares a trained model on the hub."""
    from artkv.sharing.hub_names import required_hub_name

    name = required_hub_name(options.name, options.revision)

    from artkv.sharing.pushing import PushOptions
    from artkv.sharing.pushing import push as push_run

    has_art = not options.leave_out_art_encoder
    asked = PushOptions(options.run, name, options.private, options.base_model, has_art, options.license)
    push_run(asked, lambda: options.yes or shell.agrees("upload these?"), _say)
    return DONE


def check(options: argparse.Namespace) -> int:
    """Lists everything that would stop a run."""
    from artkv.config import load_config

    config = load_config(options.config, options.set)

    with heavy_imports():
        from artkv.datasets.problems import format_problems
        from artkv.preflight import find_obstacles

    obstacles = find_obstacles(config, note=lambda text: _say(f"note: {text}"))
    if obstacles:
        print(for_terminal(format_problems(obstacles)), file=sys.stderr)
        print(f"artkv: {len(obstacles)} problem{'s' if len(obstacles) > 1 else ''} found", file=sys.stderr)
        return WRONG_INPUT
    print("artkv: no problems found")
    return DONE


def plan(options: argparse.Namespace) -> int:
    """Predicts memory and transfer."""
    from artkv.config import load_config, recipe_path

    if options.write is not None:
        check_plan_file(options.write or options.config)
    config = load_config(options.config or recipe_path("artquest.yaml"), options.set)

    with heavy_imports():
        from artkv.planning.table import run
    run(config, options)
    return DONE


def art_encoder(options: argparse.Namespace) -> int:
    """Trains the art encoder."""
    from artkv.training.preemption import StopRequests

    stops = StopRequests()
    stops.listen(signal.SIGUSR1)  # before the imports, which take seconds

    from artkv.art_encoder.arguments import settings_from_arguments

    settings = settings_from_arguments(options)
    check_folder_writable(settings.output_dir, f"--output-dir {settings.output_dir}")

    with heavy_imports():
        from artkv.art_encoder.ranks import training_world
        from artkv.art_encoder.training import train_art_encoder

    with training_world(settings) as world:
        result = train_art_encoder(
            settings, world, lambda: stops.reason, lambda: stops.listen(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )
        if world.is_main:
            _say(f"best top-1 {result.scores.top1:.3f} in epoch {result.epoch}; {result.setting}")
    return DONE


def quickstart(options: argparse.Namespace) -> int:
    """Makes an embedded world and runs the whole job on it."""
    if options.world == "encoders":
        from artkv.quickstart.encoder_world.settings import check_given

        check_given(options.ranks, options.set)
        from artkv.quickstart.encoder_world.run import run_encoder_quickstart

        run_encoder_quickstart(options.output_dir, options.seed)
        return DONE
    from artkv.quickstart.settings import QuickstartSettings

    settings = QuickstartSettings(
        Path(options.output_dir or "outputs/quickstart"), options.seed, options.ranks or 1, tuple(options.set)
    )
    settings.check()

    from artkv.quickstart.report import report_if_finished

    if not report_if_finished(settings):
        from artkv.quickstart.run import run_quickstart

        run_quickstart(settings)
    return DONE


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": init, "train": train, "supervise": supervise, "ask": ask, "serve": serve,
    "evaluate": evaluate, "compare": compare, "sweep": sweep, "report": report, "status": status,
    "cache": cache, "export": export, "push": push, "check": check, "plan": plan, "launch": launch,
    "art-encoder": art_encoder, "quickstart": quickstart,
}  # fmt: skip


def _say(text: str) -> None:
    """What a command was asked for, on stdout, without what would control a terminal."""
    print(for_terminal(text))
