"""What ranks share: every part once, in step where they must, kept under what decides it."""

import os
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.engine.engine import start_distributed
from pgdpo.files.atomic import hold
from pgdpo.messages.errors import InputError
from pgdpo.sampling import Parts, share, share_of


@settings(deadline=None)
@given(parts=st.lists(st.integers()), ranks=st.integers(1, 9), in_step=st.booleans())
def test_every_part_is_somebodys_once(parts, ranks, in_step):
    numbered = list(enumerate(parts))
    shares = [list(share_of(numbered, rank, ranks, in_step=in_step)) for rank in range(ranks)]
    assert sorted(part for own in shares for part, is_own in own if is_own) == numbered
    lengths = {len(own) for own in shares}
    assert max(lengths) - min(lengths) <= (0 if in_step else 1)
    if not in_step:
        assert all(is_own for own in shares for _, is_own in own)


@pytest.fixture
def made():
    """Parts whose making is noted."""
    start_distributed()
    calls = []

    def make(parts, *names):
        wanted = {name: [name] for name in names}
        parts.make("test", wanted, lambda part: calls.append(part[0]) or content(part[0]))
        return calls

    return make


def content(name):
    return {"x": torch.arange(3.0)} if name.endswith(".safetensors") else [0.1, None, {"b": 1, "a": 2}]


def test_parts_are_made_once_and_come_back_as_they_were(tmp_path, made):
    folder, key = tmp_path / "parts", {"settings": (1, 2), "name": "ä"}
    made(Parts(folder, key), "one.json", "a/two.safetensors")
    again = Parts(folder, key)
    assert again.missing(["a/two.safetensors", "three.json"]) == ["three.json"]
    assert made(again, "one.json", "a/two.safetensors", "three.json") == [
        "one.json",
        "a/two.safetensors",
        "three.json",
    ]
    assert again.read("one.json") == content("one.json")
    assert torch.equal(again.read("a/two.safetensors")["x"], torch.arange(3.0))
    assert Parts(folder, key | {"name": "b"}).missing(["one.json"]) == ["one.json"]
    again.remove()
    assert not folder.exists()


def test_a_file_of_another_rank_that_is_not_seen_is_named(tmp_path, made, monkeypatch):
    monkeypatch.setattr(share, "_write", lambda path, value: None)
    with pytest.raises(
        InputError, match=r"one.json: written by another rank and not to be seen here: .* --out"
    ):
        made(Parts(tmp_path, {}), "one.json")


def test_two_commands_do_not_work_in_one_folder(tmp_path, made):
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        lock = hold(tmp_path)
        os.write(said, b"held" if lock else b"")
        time.sleep(60)
        os._exit(0)
    assert os.read(heard, 4) == b"held"
    with pytest.raises(InputError, match="another command is at work there"):
        Parts(tmp_path / "parts", {})
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    made(Parts(tmp_path / "parts", {}), "one.json")  # what was killed holds nothing
