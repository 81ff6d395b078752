"""Groups prepared: what stands in the shards, what is made anew after a change, and a pair as a group of two."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.preparing.made_of import entries
from pgdpo.messages.errors import InputError
from pgdpo.toy.encoders import ToyEncoders
from pgdpo.video import read_video, write_video
from tests.data.changed_data import stale_differences
from tests.models.families import KINDS
from tests.worlds import run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

SIZES = (3, 1, 2, 6)  # samples of each group


def clip(path, seed, frames=4, side=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, side // 8, side // 8, 3), dtype=np.uint8)
    write_video(path, pixels, 8, scale=8)


def group(folder, number, size):
    samples = []
    for place in range(size):
        name = f"clips/{number}-{place}.mp4"
        clip(folder / name, 10 * number + place)
        samples.append({"clip": name, "rank": size - 1 - place, "score": 0.5 * place})
    return {"id": f"g{number}", "prompt": f"word{number}", "samples": samples}


def save(rows):
    with open("data/train.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def index_of(out="out"):
    with open(f"{out}/prepared/train/index.json") as file:
        return json.load(file)


def tensors_of(row, index, out="out"):
    """The tensors of a row of the index by their names in it."""
    tensors = load_file(f"{out}/prepared/train/{index['shards'][row['shard']]['file']}")
    prefix = f"{row['key']}."
    return {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}


def refused(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo(*arguments)
    return str(caught.value)


@pytest.fixture
def world(tmp_path, tiny_wan, monkeypatch):
    """The rows of four groups; the working folder has their manifest and `config.yaml`."""
    monkeypatch.chdir(tmp_path)
    rows = [group(tmp_path / "data", number, size) for number, size in enumerate(SIZES)]
    save(rows)
    data = {"train": "data/train.jsonl", "held_out": None, "num_frames": 4, "pairs_per_shard": 3}
    write_config(tmp_path / "config.yaml", "out", tiny_wan, data=data)
    return rows


@pytest.fixture
def counted(monkeypatch):
    """How many clips and prompts are encoded from here on."""
    counts = {"clips": 0, "prompts": 0}
    video, prompts = ToyEncoders.encode_video, ToyEncoders.encode_prompts

    def encode_video(self, frames):
        counts["clips"] += 1
        return video(self, frames)

    def encode_prompts(self, batch):
        counts["prompts"] += len(batch)
        return prompts(self, batch)

    monkeypatch.setattr(ToyEncoders, "encode_video", encode_video)
    monkeypatch.setattr(ToyEncoders, "encode_prompts", encode_prompts)
    return counts


def test_a_group_stands_in_its_shard_sample_by_sample(world, capfd):
    world[0]["samples"][1] |= {"caption": "its own words", "source": "wan", "scores": {"motion": 3.0}}
    world[2] |= {"weight": 2.0, "licence": "CC0-1.0"}
    save(world)
    run_pgdpo("prepare", "config.yaml")
    assert "4 groups of 1 to 6 samples (4 encoded; 6 prompts embedded)" in capfd.readouterr().out
    index = index_of()
    assert index["format"] == 5 and index["image"] == []
    for row, group, size in zip(index["pairs"], world, SIZES, strict=True):
        sides = [f"sample{place}" for place in range(size)]
        assert [*tensors_of(row, index)] == sides
        assert [*entries(index["made_of"]["pairs"][row["id"]])] == sides
        kept = [{key: sample[key] for key in sample if key != "clip"} for sample in group["samples"]]
        assert row["samples"] == kept
        assert all(f"sha256_{side}" in row for side in sides) and row["span"] == [0.0, 0.5]
    assert index["pairs"][2]["weight"] == 2.0 and "rejected" not in index["pairs"][2]
    data = PreparedPairs(Path("out/prepared/train"))
    assert data.has_text("its own words") and data.group_sizes == [1, 2, 3, 6]


def test_a_pair_and_a_group_of_its_clips_have_the_same_bytes(world):
    pairs = [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["samples"][0]["clip"]}
        | {"rejected": row["samples"][-1]["clip"]}
        for row in world[::2]
    ]
    save(pairs)
    run_pgdpo("prepare", "config.yaml", "output_dir=pairs")
    save([{**row, "samples": [row["samples"][0], row["samples"][-1]]} for row in world[::2]])
    run_pgdpo("prepare", "config.yaml")
    ours, theirs = index_of(), index_of("pairs")
    for group, pair in zip(ours["pairs"], theirs["pairs"], strict=True):
        groups, two = tensors_of(group, ours), tensors_of(pair, theirs, "pairs")
        assert groups["sample0"].equal(two["chosen"]) and groups["sample1"].equal(two["rejected"])
        assert not groups["sample0"].equal(groups["sample1"])
    assert ours["text"]["prompts"] == theirs["text"]["prompts"]


def relabelled(rows):
    rows[0]["samples"][0]["score"] = 9.0


def recaptioned(rows):
    rows[0]["samples"][0]["caption"] = "new words"


def replaced(rows):
    clip_of = rows[3]["samples"][4]["clip"]

    clip(Path("data") / clip_of, 99)


def one_less(rows):
    del rows[3]["samples"][-1]


def turned(rows):
    rows[0]["samples"].reverse()


CHANGES = {  # clips and prompts that are encoded, what `train` says first, and what it says to do
    "label": (relabelled, (0, 0), "sample 0 of group `g0`: `score` is 9.0, prepared was 0.0", "nothing"),
    "caption": (recaptioned, (0, 1), "sample 0 of group `g0`: `caption` is 'new words'", "anew"),
    "clip": (replaced, (6, 0), "sample 4 of group `g3`, 'clips/3-4.mp4', has other bytes", "anew"),
    "one less": (one_less, (5, 0), "sample 5 of group `g3` is None, prepared was 'clips/3-5.mp4'", "anew"),
    "order": (turned, (3, 0), "group `g0`: its samples stand in another order", "anew"),
    "none": (lambda rows: None, (0, 0), "", ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_made_anew_and_the_same_as_from_nothing(world, counted, change):
    do, encoded, said, mend = CHANGES[change]
    run_pgdpo("prepare", "config.yaml")
    before, first = index_of(), dict(counted)
    do(world)
    save(world)
    if said:
        text = refused("train", "config.yaml")
        assert said in text and mend in text.splitlines()[-1], text
    else:
        assert stale_differences("config.yaml") == []
    run_pgdpo("prepare", "config.yaml")
    assert (counted["clips"] - first["clips"], counted["prompts"] - first["prompts"]) == encoded
    after = index_of()
    assert (before["shards"] == after["shards"]) == (not encoded[0])
    run_pgdpo("prepare", "config.yaml", "output_dir=fresh")
    fresh = index_of("fresh")
    assert [row["sha256"] for row in after["pairs"]] == [row["sha256"] for row in fresh["pairs"]]
    assert [row.get("samples") for row in after["pairs"]] == [row["samples"] for row in fresh["pairs"]]
    assert stale_differences("config.yaml") == []


def test_a_group_of_several_lengths_gives_what_is_common_to_all(world, tmp_path, capfd):
    """And one clip less may make another span common: then all of them are made anew."""
    for place, frames in enumerate((9, 7, 5)):
        clip(tmp_path / "data" / world[0]["samples"][place]["clip"], place, frames)
    save(world)
    run_pgdpo("prepare", "config.yaml", "data.clip=middle")
    assert index_of()["pairs"][0]["span"] == [0.0, 0.5]  # one frame is free: half of it is none
    assert "1 groups have clips of several lengths" in capfd.readouterr().out
    del world[0]["samples"][2]
    save(world)
    run_pgdpo("prepare", "config.yaml", "data.clip=middle")
    assert index_of()["pairs"][0]["span"] == [0.125, 0.625]
    run_pgdpo("prepare", "config.yaml", "data.clip=middle", "output_dir=fresh")
    assert index_of()["pairs"] == index_of("fresh")["pairs"]


@pytest.mark.parametrize("odd", ["width", "short", "hash"])
def test_what_is_refused_names_the_sample(world, tmp_path, odd):
    path = tmp_path / "data" / world[0]["samples"][2]["clip"]
    if odd == "width":
        clip(path, 1, side=32)
        said = "group `g0`: width is 16 in .*0-0.mp4 and 32 in .*0-2.mp4: all clips of a group must"
    elif odd == "short":
        clip(path, 1, frames=3)
        said = "sample 2 of group `g0`: .*the clip holds 3 frames"
    else:
        world[0]["samples"][2]["sha256"] = "0" * 64
        save(world)
        said = "sample 2 of group `g0`: the SHA-256 of .*0-2.mp4"
    with pytest.raises(InputError, match=said):
        run_pgdpo("prepare", "config.yaml")


def test_the_clips_own_captions_of_pairs_are_embedded_too(world):
    pair = {"id": "p", "prompt": "one", "chosen": "clips/0-0.mp4", "rejected": "clips/0-1.mp4"}
    save([pair | {"caption_rejected": "another"}])
    run_pgdpo("prepare", "config.yaml")
    assert PreparedPairs(Path("out/prepared/train")).has_text("another")
    save([pair | {"caption_rejected": "a third"}])
    [found] = stale_differences("config.yaml")
    assert found.kind == "prompt edited"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), per_shard=st.integers(1, 3))
def test_every_clip_of_every_group_is_encoded_as_by_itself(world, counted, sizes, per_shard):
    """Whatever K, shards and neighbours: a sample's latents are those of its clip alone."""
    clips = [sample["clip"] for sample in world[3]["samples"]]
    rows = [
        {"id": str(number), "prompt": "x", "samples": [{"clip": clips[place]} for place in range(size)]}
        for number, size in enumerate(sizes)
    ]
    save(rows)
    run_pgdpo("prepare", "config.yaml", f"data.pairs_per_shard={per_shard}")
    index = index_of()
    found: dict[str, list] = {}
    for row in index["pairs"]:
        for side, tensor in tensors_of(row, index).items():
            found.setdefault(side, []).append(tensor)
    assert sum(map(len, found.values())) == sum(sizes)
    assert all(tensor.equal(same[0]) for same in found.values() for tensor in same)
    distinct = [same[0] for same in found.values()]
    assert not any(a.equal(b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_a_group_starts_from_its_best_sample_unless_it_names_a_picture(tmp_path, monkeypatch):
    """Where a model wants a picture, a rank that makes another sample the best makes the group anew, and it alone."""
    monkeypatch.chdir(tmp_path)
    KINDS["wan 2.1 i2v"].save(tmp_path / "model")
    rows = []
    for number in range(2):
        rows.append(group(tmp_path / "data", number, 3))
        for place in range(3):
            clip(tmp_path / "data" / rows[number]["samples"][place]["clip"], 10 * number + place, 5)
    save(rows)
    data = {"train": "data/train.jsonl", "held_out": None, "num_frames": 5, "fps": 8}
    write_config(Path("config.yaml"), "out", "model", data=data, model={"encoders": "pipeline"})

    def prepared(out="out"):
        run_pgdpo("prepare", "config.yaml", f"output_dir={out}")
        index = index_of(out)
        assert index["image"]
        return [
            {name: held for name, held in tensors_of(row, index, out).items() if name in index["image"]}
            for row in index["pairs"]
        ]

    def alike(one, other):
        return all(one[name].equal(other[name]) for name in one)

    first = prepared()
    rows[0]["samples"][0]["score"] = 7.0  # ranks decide
    save(rows)
    [found] = stale_differences("config.yaml")
    assert found.kind == "label edited" and all(map(alike, prepared(), first))
    rows[0]["samples"][0]["rank"], rows[0]["samples"][2]["rank"] = 0, 2
    save(rows)
    kinds = [found.kind for found in stale_differences("config.yaml")]
    assert kinds == ["label edited", "label edited", "picture of a clip"]
    second = prepared()
    assert not alike(second[0], first[0]) and alike(second[1], first[1])
    assert all(map(alike, second, prepared("fresh"))) and stale_differences("config.yaml") == []
    Image.fromarray(read_video(Path("data") / rows[0]["samples"][2]["clip"])[0]).save("data/start.png")
    rows[0]["image"] = "start.png"
    save(rows)
    named = prepared()
    rows[0]["samples"][0]["rank"], rows[0]["samples"][2]["rank"] = 2, 0
    save(rows)
    assert {found.kind for found in stale_differences("config.yaml")} == {"label edited"}
    assert all(map(alike, prepared(), named))


def test_what_is_held_of_a_group_where_its_ends_alone_count(world):
    """Best and worst of each group, its words, and buckets of two; what is not held is verified all the same."""
    world[3]["samples"][0]["caption"] = world[3]["samples"][2]["caption"] = "its own words"
    save(world)
    run_pgdpo("prepare", "config.yaml")
    whole, data = (PreparedPairs(Path("out/prepared/train")) for _ in range(2))
    data.keep_ends()
    assert data.group_sizes == [1, 2] and len(data) == len(whole) and data.kind == "group"
    for index, row in enumerate(world):
        ranks = [sample["rank"] for sample in row["samples"]]
        places = list(range(len(ranks)))
        ends = [ranks.index(min(ranks)), ranks.index(max(ranks))] if len(ranks) > 2 else places
        everyone, held = whole[index, 0]["samples"], data[index, 0]["samples"]
        assert len(held) == len(ends)
        assert all(each.equal(everyone[place]) for each, place in zip(held, ends, strict=True))
        assert [sample["rank"] for sample in data.rows[index]["samples"]] == [ranks[place] for place in ends]
    # The first sample is the worst.
    assert [*whole[3, 0]["captions"]] == [0, 2] and [*data[3, 0]["captions"]] == [1]
