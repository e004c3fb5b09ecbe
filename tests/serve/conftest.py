"""Trained runs of the tiny world, and servers of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from artkv.api import load_model
from artkv.config import load_config
from artkv.distributed import World
from artkv.serve.asking import AskedModel
from artkv.serve.server import PageServer
from artkv.serve.turns import Busy


def train_run(tiny_world: Path, output: Path, world: World, *overrides: str) -> Path:
    from artkv.training.run import train  # DeepSpeed takes seconds, which other tests need not wait for

    settings = [f"run.output_dir={output}", "training.num_epochs=1", *overrides]
    train(load_config(tiny_world / "config.yaml", settings), None, world)
    return output


@pytest.fixture(scope="package")
def trained_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    return train_run(tiny_world, tmp_path_factory.mktemp("serve") / "run", one_process)


@pytest.fixture(scope="package")
def asked_model(trained_run: Path) -> AskedModel:
    return AskedModel(load_model(checkpoint=trained_run / "best"), "run/step_00000008")


@pytest.fixture(scope="package")
def asked_control(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> AskedModel:
    output = tmp_path_factory.mktemp("serve") / "control"
    run = train_run(tiny_world, output, one_process, "kv_modulation.enabled=false")
    return AskedModel(load_model(checkpoint=run / "best"), "control/step_00000008")


def serve_until_interrupted(server: PageServer, model: AskedModel) -> None:
    with suppress(KeyboardInterrupt):
        server.serve(model)


def interrupt() -> None:
    raise KeyboardInterrupt  # as a signal's handler does


Serve = Callable[[AskedModel], PageServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server whose model works in a thread, on a free port; ends them after the test."""
    started: list[tuple[PageServer, threading.Thread]] = []

    def start(model: AskedModel) -> PageServer:
        server = PageServer("127.0.0.1", 0)
        thread = threading.Thread(target=serve_until_interrupted, args=[server, model], daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        with suppress(Busy):
            server.turns.do(interrupt)
        thread.join(timeout=30)
        server.server_close()
        assert not thread.is_alive()
