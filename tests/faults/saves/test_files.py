"""Faults 3, 4 and 18: checkpoints whose files were damaged are named, passed over, and never cost the last good one."""

import random
import shutil
import time

import pytest

from pgdpo.checkpoints.published import checkpoints_of, find_damage, latest_checkpoint, prune
from pgdpo.messages.errors import InputError
from tests.worlds import eagerly, losses, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """(configuration, run folder) with the checkpoints of steps 2 and 4."""
    from tests.worlds import write_config

    folder = tmp_path_factory.mktemp("trained")
    (folder / "out").mkdir()
    for shared in ("prepared", "toy"):
        (folder / "out" / shared).symlink_to(world / "out" / shared)
    config = write_config(folder / "config.yaml", folder / "out", world / "tiny_wan")
    with eagerly():  # as the tests resume it
        run_pgdpo("train", config)
    return config, folder / "out" / "dpo"


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "run")


def flip_a_bit(path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_one_bit_flipped_in_any_file(run_dir, tally):
    before, newest = checkpoints_of(run_dir)
    chance, detected = random.Random(0), 0
    for _ in range(100):
        victim = chance.choice(sorted(newest.iterdir()))
        good = victim.read_bytes()
        flip_a_bit(victim, chance)
        detected += victim.name in find_damage(newest) and latest_checkpoint(run_dir) == before
        victim.write_bytes(good)
    assert latest_checkpoint(run_dir) == newest
    tally(3, 100, detected)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def test_a_file_truncated_empty_or_deleted(run_dir, tally):
    before, newest = checkpoints_of(run_dir)
    tried = survived = 0
    for victim in sorted(newest.iterdir()):
        for damage in DAMAGES.values():
            good = victim.read_bytes()
            damage(victim)
            began = time.perf_counter()
            found = latest_checkpoint(run_dir)
            tried += 1
            survived += found == before and victim.name in find_damage(newest)
            survived -= time.perf_counter() - began > 5
            with pytest.raises(InputError, match=rf"{victim.name}.*leave out --no-fallback"):
                latest_checkpoint(run_dir, fallback=False)
            victim.write_bytes(good)
    assert latest_checkpoint(run_dir) == newest
    tally(4, tried, survived)


def test_a_run_goes_on_from_the_one_before_or_refuses(trained, tmp_path):
    config, run_dir = trained
    shutil.copytree(run_dir, run_dir.with_name("again"))
    newest = checkpoints_of(run_dir.with_name("again"))[-1]
    flip_a_bit(sorted(newest.glob("optimizer-*"))[0], random.Random(0))
    with pytest.raises(InputError, match="optimizer-.* has another SHA-256"):
        run_pgdpo("train", config, "name=again", "--resume", "--no-fallback")
    run_pgdpo("train", config, "name=again", "--resume")
    assert losses(run_dir.parent, "again") == losses(run_dir.parent, "dpo")
    assert find_damage(newest) is not None  # kept beside the one that was saved anew
    assert latest_checkpoint(run_dir.with_name("again")).name == "step-00000004.1"


def test_retention_keeps_the_last_valid_one(run_dir, tally):
    before, newest = checkpoints_of(run_dir)
    flip_a_bit(newest / "state.json", random.Random(0))
    assert prune(run_dir, keep=1) == [before]
    tally(18, 1, latest_checkpoint(run_dir) == before)
    later = before.with_name(f"step-{9:08d}")
    shutil.copytree(before, later)  # a newer valid one: now both the damaged and the old one may go
    assert prune(run_dir, keep=1) == [later]
    assert checkpoints_of(run_dir) == [later]


def test_with_no_whole_checkpoint_a_run_does_not_begin_anew(trained, tmp_path):
    config, run_dir = trained
    shutil.copytree(run_dir, run_dir.with_name("none"))
    for path in checkpoints_of(run_dir.with_name("none")):
        shutil.copy(path / "state.json", path / "weights-00009-00000.safetensors")
        assert find_damage(path) == "weights-00009-00000.safetensors is not in the manifest"
    with pytest.raises(InputError, match="none of its checkpoints is whole: .* --restart"):
        run_pgdpo("train", config, "name=none", "--resume")
