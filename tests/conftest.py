"""One process, one mode: Triton reads TRITON_INTERPRET when it is first imported, and diffusers imports it."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, read when torch is first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"

from pathlib import Path

import pytest

from tests.worlds import save_tiny_wan, toy_world, write_config

WORKERS = 4  # at most: each holds torch, and a tiny world of its own


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Where the whole suite is asked for and pytest-xdist is there, a worker per core; a part runs in this process."""
    whole = (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS and "PYTEST_XDIST_WORKER" not in os.environ
    )
    if whole and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = min(WORKERS, os.cpu_count() or 1)
        config.option.dist = "worksteal"


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    """A Wan folder with a transformer of a few thousand parameters and no VAE: for the toy's encoders."""
    return save_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_wan) -> Path:
    """A folder with rendered and prepared toy pairs; tests copy it or train other `name`s in it."""
    return toy_world(tmp_path_factory.mktemp("world"), tiny_wan)


@pytest.fixture
def config_file(world, tmp_path) -> Path:
    """A configuration of its own for one test; it shares the prepared pairs of `world` by a link."""
    output = tmp_path / "out"
    output.mkdir()
    for shared in ("prepared", "toy"):
        (output / shared).symlink_to(world / "out" / shared)
    return write_config(tmp_path / "config.yaml", output, world / "tiny_wan")
