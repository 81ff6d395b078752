"""Both backends for every test that asks for one; without a GPU, Triton means its interpreter."""

import pytest

from pgdpo_kernels import set_backend


@pytest.fixture(params=["eager", "triton"])
def backend(request):
    with set_backend(request.param):
        yield request.param
