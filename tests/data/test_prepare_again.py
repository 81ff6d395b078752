"""Prepared again: only what changed is made anew, the same as from nothing, and the earlier data stay until then."""

import itertools
import json

import pytest

from pgdpo.checking import run_check
from pgdpo.data.prepared import PreparedPairs
from pgdpo.messages.errors import InputError
from tests.data.changed_data import (
    SPLITS,
    edit,
    edited,
    flip_weights,
    insert,
    refused,
    replace,
    stale_differences,
    swap,
)
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

LABELS_ALONE = {
    "labels": edited(0, weight=3, preference=0.9),
    "removed": lambda: edit(lambda rows, _: rows[1:]),
    "order": lambda: edit(lambda rows, _: rows[::-1]),
}


@pytest.mark.parametrize("change", LABELS_ALONE)
def test_labels_need_no_encoding(changed_world, counted, change):
    LABELS_ALONE[change]()
    assert "encodes nothing" in refused("train", "config.yaml", "name=other")
    run_pgdpo("prepare", "config.yaml")
    assert counted == {"clips": 0, "prompts": 0}
    data = PreparedPairs(changed_world / "out/prepared/train")
    assert all(data[index, 0]["damage"] is None for index in range(len(data)))
    with open("data/train.jsonl") as file:
        rows = [row for row in map(json.loads, file) if row.get("preference") != 0.5]
    assert [(row["id"], row["weight"]) for row in data.rows] == [(row["id"], row["weight"]) for row in rows]
    assert run_check("config.yaml").exit_code == 0
    run_pgdpo("train", "config.yaml", "name=other")


def test_a_runs_record_is_told_with_the_override_that_names_its_rows(changed_world):
    """`prepare` with a file that names other manifests by now would never help."""
    edited(0, weight=3)()
    assert "data.train=" not in refused("train", "config.yaml", "name=other")
    file = changed_world / "config.yaml"
    file.write_text(file.read_text().replace("data/train.jsonl", "data/train-b.jsonl"))
    said = refused("train", "config.yaml", "--resume")
    assert "encodes nothing (the run out/dpo" in said and "type data.train=data/train.jsonl with it" in said
    run_pgdpo("prepare", "config.yaml", "data.train=data/train.jsonl")
    run_pgdpo("curate", "out/dpo")


ANEW = {  # change: clips and prompts of both splits that are encoded, and what `prepare` says
    "row in front": (lambda: insert(0), (4, 0), "prepared 5 pairs (1 encoded, 4 kept; 0 prompts embedded)"),
    "swapped": (swap, (4, 0), "4 pairs (1 encoded, 3 kept;"),
    "clip": (replace("3-chosen.mp4"), (4, 0), "4 pairs (1 encoded, 3 kept;"),
    "mask": (replace("0-mask.png"), (4, 0), "4 pairs (1 encoded, 3 kept;"),
    "prompt": (edited(2, prompt="a star"), (0, 2), "4 pairs (0 encoded, 4 kept; 1 prompts embedded)"),
    "id": (edited(1, id="new"), (0, 0), "4 pairs (0 encoded, 4 kept, 1 removed;"),
    "text encoder": (flip_weights("text_encoder"), (0, 9), "4 pairs (0 encoded, 4 kept; 4 prompts embedded)"),
    "vae": (flip_weights("vae"), (16, 0), "4 pairs (4 encoded; 0 prompts embedded)"),
    "nothing": (lambda: None, (0, 0), "4 pairs (0 encoded, 4 kept; 0 prompts embedded)"),
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(one, marks=pytest.mark.slow) if one in ("clip", "mask", "id", "vae") else one
        for one in ANEW
    ],
)
def test_prepare_makes_only_what_changed_and_the_same_as_from_nothing(changed_world, counted, change, capfd):
    do, encoded, said = ANEW[change]
    do()
    run_pgdpo("prepare", "config.yaml")
    assert (counted["clips"], counted["prompts"]) == encoded
    assert said in capfd.readouterr().out
    run_pgdpo("prepare", "config.yaml", "output_dir=fresh")
    kept, fresh = (PreparedPairs(changed_world / out / "prepared/train") for out in ("out", "fresh"))
    assert kept.fingerprint == fresh.fingerprint
    assert kept.rows == fresh.rows
    named = {entry["file"] for part in ("text", "negative") for entry in kept.index[part]["files"]}
    named |= {entry["file"] for entry in kept.index["shards"]}
    assert {path.name for path in kept.folder.glob("*.safetensors")} == named  # nothing else is left
    assert stale_differences("config.yaml") == []


def test_negative_prompts_are_added_and_go_with_their_text_encoder(changed_world, counted):
    folder = changed_world / "out/prepared/held_out"
    run_pgdpo("prepare", "config.yaml", "evaluate.negative_prompt=ugly")
    (card, ugly), added = PreparedPairs(folder).index["negative"]["written"], counted["prompts"]
    assert (ugly, added) == ("ugly", 1)
    damaged = folder / PreparedPairs(folder).index["negative"]["files"][1]["file"]
    damaged.write_bytes(damaged.read_bytes()[:-1] + bytes([damaged.read_bytes()[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"{damaged.name}: its SHA-256 is .*pgdpo prepare"):
        PreparedPairs(folder)
    run_pgdpo("prepare", "config.yaml")
    assert PreparedPairs(folder).text("ugly") and counted["prompts"] == 2
    flip_weights("text_encoder")()
    run_pgdpo("prepare", "config.yaml", "evaluate.negative_prompt=blurry")
    data = PreparedPairs(folder)
    assert data.index["negative"]["written"] == ["blurry"]
    assert not data.has_text(card) and not data.has_text("ugly")
    assert len([*folder.glob("negative-*.safetensors")]) == 1


def test_pairs_prepared_without_a_part_for_negative_prompts_are_read_as_they_are(changed_world, counted):
    folder = changed_world / "out/prepared/held_out"
    before = PreparedPairs(folder)
    index = json.loads((folder / "index.json").read_text())
    del index["negative"]
    (folder / "index.json").write_text(json.dumps(index))
    for name in folder.glob("negative-*"):
        name.unlink()
    earlier = PreparedPairs(folder)
    assert earlier.fingerprint == before.fingerprint and earlier.has_text("")
    assert not earlier.has_text("ugly")
    run_pgdpo("prepare", "config.yaml", "evaluate.negative_prompt=ugly")
    assert counted == {"clips": 0, "prompts": 1}
    assert PreparedPairs(folder).fingerprint == before.fingerprint


def test_earlier_files_stay_until_the_new_index_stands(changed_world, counted, monkeypatch):
    """Killed before the index: what was prepared is whole, and what was made since is not made again."""
    import pgdpo.data.preparing.prepare as module
    from pgdpo.data.preparing.made_of import record

    before = PreparedPairs(changed_world / "out/prepared/train").fingerprint
    insert(0)
    monkeypatch.setattr(module, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(BaseException):  # noqa: B017 the command line has its own words for it
        run_pgdpo("prepare", "config.yaml")
    assert PreparedPairs(changed_world / "out/prepared/train").fingerprint == before
    assert counted["clips"] == 2
    monkeypatch.setattr(module, "record", record)
    run_pgdpo("prepare", "config.yaml")
    assert counted["clips"] == 4  # the held-out pair
    assert len(PreparedPairs(changed_world / "out/prepared/train")) == 5


def test_damaged_earlier_files_are_not_taken_over(changed_world, counted):
    shard = sorted((changed_world / "out/prepared/train").glob("shard-*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    insert(0)
    run_pgdpo("prepare", "config.yaml")
    assert counted["clips"] == 4 + 2  # the new pairs, and the damaged one
    run_pgdpo("prepare", "config.yaml", "output_dir=fresh")
    kept, fresh = (
        PreparedPairs(changed_world / out / "prepared/train").fingerprint for out in ("out", "fresh")
    )
    assert kept == fresh


NO_NOTES = [
    b"\xff\xfe\x00",
    b'{"a": 1}',
    b"[" * 200_000,
    b"[]",
    b'{"file": 3, "key": [], "sha256": null}',
    b"",
]


def test_damaged_notes_and_what_a_kill_left(changed_world, counted):
    """A file whose note says nothing is made anew of what the index has; temporary files of dead processes go."""
    folder = changed_world / "out/prepared/train"
    before, index = PreparedPairs(folder).fingerprint, (folder / "index.json").read_text()
    notes = sorted(folder.glob("*-*.json"))
    for note, content in zip(notes, itertools.cycle(NO_NOTES)):
        note.write_bytes(content)
    for name in ("shard-5x16x16-00001.safetensors", "text-00000.json", "negative-00000.json", "index.json"):
        (folder / f".{name}.4194305.tmp").write_text("{")
    run_pgdpo("prepare", "config.yaml")
    assert counted == {"clips": 0, "prompts": 0} and not list(folder.glob(".*.tmp"))
    assert len(list(folder.glob("*-*.json"))) == len(notes)
    assert PreparedPairs(folder).fingerprint == before
    run_pgdpo("prepare", "config.yaml")
    assert counted == {"clips": 0, "prompts": 0}
    (folder / "index.json").write_text(index.replace("{", "[") * 2_000)
    assert "index.json: not JSON" in refused("train", "config.yaml", "name=other")


def test_a_folder_of_the_version_before_is_named_and_kept(changed_world, counted):
    before = PreparedPairs(changed_world / "out/prepared/train").fingerprint
    for split in SPLITS:
        path = changed_world / "out/prepared" / split / "index.json"
        index = json.loads(path.read_text())
        del index["made_of"]
        path.write_text(json.dumps(index | {"format": 3}, indent=2))
    for command in ("train", "evaluate", "reference"):
        text = refused(command, "config.yaml", *(["name=other"] if command != "evaluate" else []))
        assert "made by an earlier version" in text and "it keeps what is encoded" in text
    found = run_check("config.yaml")
    assert found.exit_code == 2 and any(
        "made by an earlier version" in problem.what for problem in found.problems
    )
    files = {
        path: path.stat().st_mtime_ns for path in (changed_world / "out/prepared").glob("*/*.safetensors")
    }
    run_pgdpo("prepare", "config.yaml")
    assert counted == {"clips": 0, "prompts": 0}
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert PreparedPairs(changed_world / "out/prepared/train").fingerprint == before
    run_pgdpo("train", "config.yaml", "name=other")


def test_pairs_that_no_version_looked_at_go_into_other_files(changed_world, counted):
    """Format 4 said of no pair which part of its clips was taken."""
    path = changed_world / "out/prepared/train/index.json"
    index = json.loads(path.read_text())
    del index["made_of"]["sampling"], index["streams"]
    for made in index["made_of"]["pairs"].values():
        for key in ("fps", "view", "span"):
            del made[key]
    path.write_text(json.dumps(index | {"format": 4}))
    insert(0)
    run_pgdpo("prepare", "config.yaml")
    assert counted["clips"] == 4  # the new pairs'
