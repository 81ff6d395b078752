"""What tests of the command line share."""

import os

import pytest


@pytest.fixture
def umask(request):
    """The parameter is this process's umask, and that of what it starts."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)
