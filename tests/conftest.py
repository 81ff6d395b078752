"""One process, one mode: Triton reads TRITON_INTERPRET when it is first imported, and diffusers imports it."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, read when torch is first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"

import functools
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interpreter import speed_up_interpreter
from tests.ranks import Ranks, Zygote
from tests.worlds import eagerly, save_tiny_wan, share_pairs, toy_world, write_config

if os.environ.get("TRITON_INTERPRET") == "1":
    speed_up_interpreter()

WORKERS = 4  # at most: each holds torch, and a tiny world of its own


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Where the whole suite is asked for and pytest-xdist is there, a worker per core and one more, as tests wait for
    other processes; a part runs in this process.

    What is slow in a quick module is no part of the quick layer.
    """
    whole = (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS and "PYTEST_XDIST_WORKER" not in os.environ
    )
    if whole and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = min(WORKERS, (os.cpu_count() or 1) + 1)
        config.option.dist = "worksteal"
    if config.option.markexpr == "quick":
        config.option.markexpr = "quick and not slow"


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collections that DeepSpeed asks for need not walk over it each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # extensions that count what was never freed would complain of it at the end


@pytest.fixture(scope="session", autouse=True)
def counted_once(tmp_path_factory):
    """In this process, and in the ranks that it starts."""
    from tests import counted

    os.environ[counted.FOLDER] = str(tmp_path_factory.mktemp("counted"))
    counted.keep()


@pytest.fixture
def eager_kernels():
    """`worlds.eagerly`, for a test."""
    with eagerly():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """For commands that end in a report and are not about it: its curves take most of their time."""
    monkeypatch.setattr("pgdpo.report.curves.svg.draw", lambda *_: ("", "{}"))


@pytest.fixture
def traced_once(monkeypatch):
    """For plans of one model under many settings: equal passes are traced once a process."""
    from pgdpo.planning import plan
    from tests.planning.traced_once import traced

    monkeypatch.setattr(plan.Planner, "traced", traced)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    """A Wan folder with a transformer of a few thousand parameters and no VAE: for the toy's encoders."""
    return save_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[..., Path]:
    """`saved(save, ...)`: the folder that `save(..., folder)` filled, once a process. It is read only."""
    return functools.cache(
        lambda save, *what, **options: save(*what, tmp_path_factory.mktemp("saved"), **options)
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_wan) -> Path:
    """A folder with rendered and prepared toy pairs; tests copy it or train other `name`s in it."""
    return toy_world(tmp_path_factory.mktemp("world"), tiny_wan)


@pytest.fixture
def config_file(world, tmp_path) -> Path:
    """A configuration of its own for one test; it shares the prepared pairs of `world` by a link."""
    return write_config(tmp_path / "config.yaml", share_pairs(tmp_path, world), world / "tiny_wan")


@pytest.fixture(scope="session")
def zygotes():
    """Servers of ranks without and with Triton's interpreter; each starts at its first job."""
    servers = {interpreted: Zygote(interpreted=interpreted) for interpreted in (False, True)}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture
def ranks(zygotes, tmp_path):
    """Starts jobs on several ranks; what still runs at the end is killed."""
    ranks = Ranks(zygotes, tmp_path)
    yield ranks
    ranks.end()
