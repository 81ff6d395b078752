"""Batches that threads read ahead: the same, in the same order, and what is damaged is found in its turn."""

import shutil

import pytest
import torch

from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate, for_members, load_batches, to_device
from pgdpo.messages.errors import InputError

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(world, tmp_path):
    return shutil.copytree(world / "out/prepared/train", tmp_path / "train")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_pairs_that_are_asked_for(folder, workers):
    data = PreparedPairs(folder, caption_dropout=0.5)
    jobs = [[(index % 12, draw), (5 * index % 12, draw + 1)] for index in range(9) for draw in range(2)]
    found = list(load_batches(data, jobs, workers=workers))
    assert len(found) == len(jobs)
    for batch, asked in zip(found, jobs, strict=True):
        alone = collate([data[job] for job in asked])
        assert (batch["ids"], batch["draw"].tolist()) == (alone["ids"], [draw for _, draw in asked])
        assert torch.equal(batch["latents"], alone["latents"])
        assert all(
            torch.equal(batch["conditioning"][name], alone["conditioning"][name])
            for name in alone["conditioning"]
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bit_that_turns_while_pairs_are_read_is_found_at_its_pair(folder, workers):
    data = PreparedPairs(folder)
    loaded = load_batches(data, [[(index, 0)] for index in range(12)], workers=workers)
    assert next(loaded)["ids"] == [data.rows[0]["id"]]
    shard = folder / data.index["shards"][data.rows[11]["shard"]]["file"]
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    taken = []
    with pytest.raises(InputError, match=rf"^pair `.*`: .*{shard.name}: its bytes have another SHA-256"):
        taken.extend(batch["ids"][0] for batch in loaded)
    assert taken == [row["id"] for row in data.rows[1 : 1 + len(taken)]] and len(taken) >= 9


def test_what_is_stored_in_bf16_comes_to_the_device_in_fp32(folder):
    stored = {"prompt": torch.randn(2, 3, 4).bfloat16(), "prompt_mask": torch.ones(2, 3, dtype=torch.bool)}
    told = for_members(to_device(stored, torch.device("cpu")), 4)
    assert told["prompt"].dtype == torch.float32 and told["prompt_mask"].dtype == torch.bool
    assert torch.equal(told["prompt"], torch.cat([stored["prompt"]] * 2).float())
