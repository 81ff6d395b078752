"""Embedded prompts are stored as computed, all of a folder in one dtype; those of earlier versions in fp32."""

import json

import pytest
import torch
from safetensors import safe_open

from pgdpo.config.read import load_config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.preparing.room import conditioning_bytes
from pgdpo.data.visits.loading import to_device
from pgdpo.models import open_family
from pgdpo.models.encoders.wan import WanEncoders
from tests.data.changed_data import SPLITS, edited, stale_differences
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")
CPU = torch.device("cpu")


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """`beside_a_gpu(yes)`: the text encoder computes in bf16 from here on, or again in fp32."""
    whole = WanEncoders.__init__

    def choose(yes):
        def opened(self, family, device):
            whole(self, family, device)
            if yes:
                self.text_dtype = torch.bfloat16

        monkeypatch.setattr(WanEncoders, "__init__", opened)

    return choose


def stored(folder) -> tuple[set, set]:
    """(the dtypes in a folder's files of prompts, those that its index says)."""
    index = json.loads((folder / "index.json").read_text())
    files = [entry for part in ("text", "negative") for entry in index[part]["files"]]
    found = set()
    for entry in files:
        with safe_open(folder / entry["file"], "pt") as file:
            found |= {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    return found, {entry.get("dtype") for entry in files}


def test_what_a_text_encoder_computes_in_bf16_is_stored_so_and_seen_to_the_bit(
    changed_world, beside_a_gpu, capfd
):
    beside_a_gpu(True)
    new = ["prepare", "config.yaml", "output_dir=new"]
    run_pgdpo(*new)
    folder = changed_world / "new/prepared/train"
    assert stored(folder) == ({torch.bfloat16}, {"bfloat16"})
    data, config = PreparedPairs(folder), load_config("config.yaml")
    encoders = open_family(config.model).load_encoders(CPU)
    for row in data.rows:
        told = to_device(data.text(row["prompt"]), CPU)["prompt"]
        computed = encoders.encode_prompts([row["prompt"]])[0]["prompt"]
        assert (told.dtype, computed.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(told[: len(computed)], computed.float()) and not told[len(computed) :].any()
    run_pgdpo("train", "config.yaml", "output_dir=new", "name=other")
    assert "prompts were embedded in bfloat16, and the run computes in float32" in capfd.readouterr().out

    edited(2, prompt="a star")()
    beside_a_gpu(False)
    run_pgdpo(*new)
    assert "prompts are embedded in bfloat16, as those that are there were" in capfd.readouterr().out
    assert stored(folder) == ({torch.bfloat16}, {"bfloat16"})
    beside_a_gpu(True)
    run_pgdpo("prepare", "config.yaml", "output_dir=fresh")
    assert (
        PreparedPairs(folder).fingerprint == PreparedPairs(changed_world / "fresh/prepared/train").fingerprint
    )


def test_a_folder_of_an_earlier_version_stays_as_it_is(changed_world, beside_a_gpu, counted):
    """Its files don't say a dtype: they hold fp32, whatever that was computed in."""
    for split in SPLITS:
        folder = changed_world / "out/prepared" / split
        for path in (folder / "index.json", *folder.glob("text-*.json"), *folder.glob("negative-*.json")):
            path.write_text(path.read_text().replace('"dtype": "float32",', ""))
    before = PreparedPairs(folder := changed_world / "out/prepared/train").fingerprint
    beside_a_gpu(True)
    assert stale_differences("config.yaml") == []
    run_pgdpo("prepare", "config.yaml")
    assert counted == {"clips": 0, "prompts": 0} and PreparedPairs(folder).fingerprint == before
    run_pgdpo("train", "config.yaml", "--resume", "train.steps=2")
    edited(2, prompt="a star")()
    run_pgdpo("prepare", "config.yaml")
    assert counted["prompts"] == 2 and stored(folder) == ({torch.float32}, {None})


def test_the_disk_that_is_asked_for_follows(changed_world):
    config = load_config("config.yaml")
    family = open_family(config.model)
    shape = family.latent_shape(5, 16, 16)
    sizes = [
        conditioning_bytes(family, shape, text=dtype, image=torch.float32)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sizes == [(512 * 32 * 4, 0), (512 * 32 * 2, 0)]
