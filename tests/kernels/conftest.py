"""Both backends for every test that asks for one; without a GPU, Triton means its interpreter."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pgdpo_kernels import set_backend

if importlib.util.find_spec("hypothesis") is None:  # as on a machine that is borrowed for its GPU
    sys.path.insert(0, str(Path(__file__).parent))
    import plain_hypothesis

    sys.modules["hypothesis"] = plain_hypothesis
    sys.modules["hypothesis.strategies"] = plain_hypothesis.strategies


@pytest.fixture(params=["eager", "triton"])
def backend(request):
    with set_backend(request.param):
        yield request.param
