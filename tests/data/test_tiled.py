"""Prepared data know which clips were encoded in tiles: one way for all of a size, never another in silence."""

import json
from types import SimpleNamespace

import pytest

from pgdpo.checking import run_check
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.preparing.tiled import settle_tiling
from pgdpo.models.encoders import tiling
from tests.data.changed_data import edit, refused
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

WIDE = ["data.width=272", "data.held_out=null", "output_dir=wide"]  # a tile is 256 pixels
CLIPS = 8


def prepare(*overrides):
    run_pgdpo("prepare", "config.yaml", *WIDE, *overrides)


def prepared(world) -> PreparedPairs:
    return PreparedPairs(world / "wide/prepared/train")


def modes(world) -> set:
    return {entry.get("tiled") for entry in prepared(world).index["shards"]}


@pytest.fixture
def memory(monkeypatch):
    """`memory(bytes)`: so many are free."""
    return lambda free: monkeypatch.setattr(tiling, "free_bytes", lambda _: free)


def test_what_was_prepared_stays_and_is_told_from_the_other_way(changed_world, counted, memory, capfd):
    memory(0)
    prepare()
    assert modes(changed_world) == {True} and counted["clips"] == CLIPS
    assert capfd.readouterr().out.count("clips of 5x16x272 are encoded in tiles: whole ones need") == 1
    tiles = prepared(changed_world).fingerprint
    memory(1 << 60)
    for command in ("prepare", "train"):
        run_pgdpo(command, "config.yaml", *WIDE)
        assert "clips of 5x16x272 were encoded in tiles and stay so" in capfd.readouterr().out
    assert modes(changed_world) == {True} and counted["clips"] == CLIPS
    text = refused("train", "config.yaml", "name=other", *WIDE, "model.vae_tiling=whole")
    assert "clips of 5x16x272 were encoded tiled, this configuration asks for whole" in text
    assert run_check("config.yaml", [*WIDE, "model.vae_tiling=whole"]).exit_code == 2
    prepare("model.vae_tiling=whole")
    assert modes(changed_world) == {False} and counted["clips"] == 2 * CLIPS
    assert prepared(changed_world).fingerprint != tiles
    memory(0)
    prepare()
    assert modes(changed_world) == {False} and counted["clips"] == 2 * CLIPS
    assert "in tiles" not in capfd.readouterr().out
    assert "were encoded whole" in refused(
        "train", "config.yaml", "name=other", *WIDE, "model.vae_tiling=tiled"
    )


def test_an_earlier_versions_data_were_made_in_tiles(changed_world, counted, memory, capfd):
    memory(0)
    prepare()
    for note in changed_world.glob("wide/prepared/*/shard-*.json"):
        note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "tiled"}))
    path = changed_world / "wide/prepared/train/index.json"
    index = json.loads(path.read_text())
    for entry in index["shards"]:
        del entry["tiled"]
    path.write_text(json.dumps(index))
    memory(1 << 60)
    edit(lambda rows, _: rows[1:])
    prepare()
    assert counted["clips"] == CLIPS
    assert "clips of 5x16x272 were encoded in tiles and stay so" in capfd.readouterr().out
    assert "encoded tiled" in refused("train", "config.yaml", *WIDE, "model.vae_tiling=whole")


@pytest.mark.slow
def test_a_prepare_that_was_cut_short_goes_on_as_it_began(changed_world, counted, memory):
    memory(1 << 60)
    prepare()
    (changed_world / "wide/prepared/train/index.json").unlink()
    next((changed_world / "wide/prepared/train").glob("shard-*00001.safetensors")).unlink()
    memory(0)
    counted["clips"] = 0
    prepare()
    assert modes(changed_world) == {False} and 0 < counted["clips"] < CLIPS


@pytest.mark.parametrize(("ranks", "tiled"), [((False, True), True), ((False, False), False)])
def test_ranks_go_the_way_of_the_one_with_least_memory(ranks, tiled, capfd):
    settled = {}
    work = SimpleNamespace(
        folder="prepared",
        config=SimpleNamespace(sizes=[(5, 16, 272)]),
        encoders=SimpleNamespace(
            tiling=SimpleNamespace(
                asked="auto",
                cuts=lambda *_: True,
                of=lambda *_: ranks[0],
                settle=lambda size, way, how: settled.update({(size, way): how}),
            )
        ),
        earlier=SimpleNamespace(tiled=lambda _: None),
        ranks=SimpleNamespace(gather=lambda own: list(ranks)),
    )
    settle_tiling(work)
    assert settled == {((5, 16, 272), "encoded"): tiled}
    assert ("another rank has no memory" in capfd.readouterr().out) == tiled
