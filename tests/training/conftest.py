"""Worlds of groups, each prepared once a process; a test trains in an output folder of its own."""

import pytest

from tests.training import list_worlds


@pytest.fixture(scope="session")
def lists_world(tmp_path_factory, tiny_wan):
    return list_worlds.toy_lists(tmp_path_factory.mktemp("lists"), tiny_wan)


@pytest.fixture(scope="session")
def ragged_world(lists_world, tmp_path_factory):
    return list_worlds.made_of(lists_world, tmp_path_factory.mktemp("ragged"), list_worlds.ragged)


@pytest.fixture
def lists(lists_world, tmp_path):
    """A configuration of 8 toy lists of 4 clips, 2 more held out."""
    return list_worlds.own_config(lists_world, tmp_path)


@pytest.fixture
def ragged(ragged_world, tmp_path):
    """A configuration of the same lists with 4, 3 and 2 clips left of them, and a label of each."""
    return list_worlds.own_config(ragged_world, tmp_path)
