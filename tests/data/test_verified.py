"""Prepared files are hashed when they are new or changed, each by one rank; what was whole is noted beside them."""

import json
import os
import random
import shutil
from collections import Counter

import pytest

from pgdpo.checkpoints.published import share_of
from pgdpo.data import verified
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.verified import NOTE, read_note
from pgdpo.messages.errors import InputError
from tests.data import open_on_ranks
from tests.worlds import write_config


@pytest.fixture
def folder(world, tmp_path):
    copy = tmp_path / "out" / "prepared" / "train"
    shutil.copytree(world / "out/prepared/train", copy, ignore=shutil.ignore_patterns(NOTE))
    return copy


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, which are forgotten by `clear`."""
    names, whole = [], verified.sha256_of
    monkeypatch.setattr(verified, "sha256_of", lambda path: names.append(path.name) or whole(path))
    return names


def flip(path, *, restore_time: bool = False):
    was = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if restore_time:
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_what_was_whole_is_not_hashed_again_until_it_changes(folder, hashed):
    before = PreparedPairs(folder).fingerprint
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(hashed) == files == sorted(read_note(folder))
    hashed.clear()
    assert PreparedPairs(folder).fingerprint == before and not hashed
    PreparedPairs(folder, full=True)
    assert sorted(hashed) == files
    hashed.clear()
    shard = next(folder.glob("shard-*.safetensors"))
    os.utime(shard)
    PreparedPairs(folder)
    assert hashed == [shard.name]
    flip(shard, restore_time=True)  # size and time of change are as noted; the inode's time is not
    for _ in range(2):  # a damaged file is not noted
        with pytest.raises(InputError, match=f"{shard.name}: its SHA-256 is"):
            PreparedPairs(folder)


@pytest.mark.parametrize("text", ["", "[1]", "[" * 200_000, '{"shard": 3}', '{"a": {"sha256": 1}}', "\udcff"])
def test_a_note_that_cannot_be_read_or_written_is_none(folder, hashed, monkeypatch, text):
    (folder / NOTE).write_text(text, errors="surrogateescape")
    PreparedPairs(folder)
    assert len(hashed) == len(list(folder.glob("*.safetensors")))
    (folder / NOTE).unlink()

    def refuse(path, value):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(verified, "write_json", refuse)
    PreparedPairs(folder)
    assert not (folder / NOTE).exists() and not list(folder.glob("*.tmp"))


def test_a_note_of_other_bytes_counts_for_nothing(folder, hashed):
    """The index was made anew, and the files it speaks of are those of before."""
    PreparedPairs(folder)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["sha256"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="the index says 000000000000"):
        PreparedPairs(folder)


def test_a_bit_that_flips_in_silence_is_found_when_it_is_read(folder, monkeypatch):
    """Size and all times as they were: the start does not see it, the read does, and `check --full`."""
    note = verified._stamp
    stamps = {}
    monkeypatch.setattr(verified, "_stamp", lambda path, entry: stamps.setdefault(path, note(path, entry)))
    PreparedPairs(folder)
    data = PreparedPairs(folder)
    shard = folder / data.index["shards"][0]["file"]
    flip(shard)
    data = PreparedPairs(folder)
    damaged = []
    for index, row in enumerate(data.rows):
        try:
            data[index, 0]
        except InputError as error:
            damaged.append(row["shard"])
            assert f"pair `{row['id']}`: {shard}: its bytes have another SHA-256" in str(error)
    assert set(damaged) == {0}
    with pytest.raises(InputError, match=f"{shard.name}: its SHA-256 is"):
        PreparedPairs(folder, full=True)


def test_each_file_is_hashed_by_one_rank_and_damage_is_everybodys(world, folder, ranks, tmp_path):
    (tmp_path / "out" / "toy").symlink_to(world / "out" / "toy")
    config = write_config(tmp_path / "config.yaml", tmp_path / "out", world / "tiny_wan")
    files = Counter(path.name for path in folder.glob("*.safetensors"))
    victim = next(folder.glob("shard-*.safetensors"))
    found = ranks.call(open_on_ranks.open_thrice, str(config), str(victim), ranks=3)
    new, known, damaged = zip(*found, strict=True)
    assert sum((Counter(rank["hashed"]) for rank in new), Counter()) == files  # each once, by one rank
    for times in (new, known, damaged):
        assert sum((Counter(rank["looked"]) for rank in times), Counter()) == files
    assert max(len(rank["hashed"]) for rank in new) <= -(-len(files) // 3)
    assert not any(rank["hashed"] for rank in known) and len({rank["fingerprint"] for rank in known}) == 1
    assert [name for rank in damaged for name in rank["hashed"]] == [victim.name]
    assert len({rank["refused"] for rank in damaged}) == 1 and victim.name in damaged[0]["refused"]


def test_a_file_that_the_disk_does_not_give_is_damaged(folder, monkeypatch):
    whole, victim = verified.sha256_of, next(folder.glob("shard-*.safetensors"))

    def failing(path):
        if path == victim:
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(verified, "sha256_of", failing)
    data = PreparedPairs(folder, stand_in=True)
    assert list(data.damaged_files) == [victim.name] and victim.name not in read_note(folder)
    with pytest.raises(InputError, match=r"cannot be read \(Input/output error\); run `pgdpo prepare` again"):
        PreparedPairs(folder)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_ranks_share_a_checkpoints_files_by_their_bytes(ranks):
    chance = random.Random(ranks)
    sizes = {f"weights-{n:05d}": chance.randrange(1, 1 << 28) for n in range(300)}
    shares = [share_of(sizes, rank, ranks) for rank in range(ranks)]
    assert Counter(name for share in shares for name in share) == Counter(list(sizes))
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values())
