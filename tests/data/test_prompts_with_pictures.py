"""Pairs of a model whose text encoder reads a prompt together with the picture: HunyuanVideo image-to-video."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from pgdpo.config.read import load_config
from pgdpo.data.curation.apply import _spread
from pgdpo.data.prepared import PreparedPairs
from pgdpo.models.encoders.hunyuan_video import HunyuanVideoImageEncoders
from pgdpo.training.opening import compare_prepared
from tests.models.families import KINDS
from tests.models.road import CPU, Road
from tests.worlds import run_pgdpo

KIND = KINDS["hunyuan_video i2v"]


@pytest.fixture(scope="module")
def road(saved, world, tmp_path_factory):
    """(its configuration, its manifest) of four pairs of two prompts, prepared."""
    root = tmp_path_factory.mktemp("pictures")
    config = Road(KIND, saved(KIND.save), world, root).config()
    there = Path(load_config(config).data.train)
    rows = [json.loads(line) for line in there.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["prompt"] = ("a red circle", "a blue star")[number % 2]
        for side in ("chosen", "rejected"):
            row[side] = Path(shutil.copy(there.parent / row[side], root)).name
    manifest = root / "rows.jsonl"
    given = [str(config), f"data.train={manifest}", "data.held_out=null", "data.latent_dtype=float32"]
    write(manifest, rows)
    run_pgdpo("prepare", *given)
    return given, manifest, rows


def write(manifest, rows) -> None:
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(given, **options) -> PreparedPairs:
    return PreparedPairs(load_config(given[0], given[1:]).prepared_folder("train"), **options)


def test_a_prompt_is_told_as_it_was_read_with_its_own_pairs_picture(road, saved):
    given, _, rows = road
    data, encoders = pairs(given), KIND.open(saved(KIND.save)).load_encoders(CPU)
    told = [data[index, 0]["conditioning"] for index in range(len(data))]
    assert not torch.equal(told[0]["prompt"], told[2]["prompt"])  # of one prompt
    assert torch.equal(told[0]["pooled"], told[2]["pooled"])  # which CLIP reads alone
    for row, item in zip(rows, told, strict=True):
        length = int(item["prompt_mask"].sum())
        assert length == 576 // 4 + len(row["prompt"].split()) + 1  # and the line that ends the template
        assert item["prompt"][length:].abs().sum() == 0
    assert len(data.index["text"]["prompts"]) == 1  # the empty one
    (dropped,) = encoders.encode_prompts([""])
    item = pairs(given, caption_dropout=1 - 1e-9)[0, 0]["conditioning"]
    assert torch.equal(item["prompt"][: len(dropped["prompt"])], dropped["prompt"])
    assert int(item["prompt_mask"].sum()) == len(dropped["prompt"])
    assert torch.equal(item["image_latents"], told[0]["image_latents"])  # the picture stays
    assert _spread(data, sorted({row["prompt"] for row in rows}), 1).shape == (2,)


def test_an_edited_prompt_is_read_anew_and_it_alone(road):
    given, manifest, rows = road
    before = pairs(given)
    was = [before.prompt_of(index) for index in range(4)]
    edited = [rows[0] | {"prompt": "a green ring"}, *rows[1:]]
    write(manifest, edited)
    [found] = compare_prepared(load_config(given[0], given[1:]), "train").found
    assert found.kind == "prompt edited"
    own = HunyuanVideoImageEncoders.encode_images
    with mock.patch.object(
        HunyuanVideoImageEncoders, "encode_images", autospec=True, side_effect=own
    ) as asked:
        run_pgdpo("prepare", *given)
    assert [call.args[-1] for call in asked.call_args_list] == ["a green ring"]
    now = [pairs(given).prompt_of(index) for index in range(4)]
    alike = [all(torch.equal(now[at][name], was[at][name]) for name in was[at]) for at in range(4)]
    assert alike == [False, True, True, True]
    write(manifest, rows)
    run_pgdpo("prepare", *given)


def test_a_picture_of_its_own_is_what_the_prompt_is_read_with(road):
    given, manifest, rows = road
    was = pairs(given).prompt_of(0)
    Image.new("RGB", (48, 32), (200, 30, 30)).save(manifest.parent / "start.png")
    write(manifest, [rows[0] | {"image": "start.png"}, *rows[1:]])
    run_pgdpo("prepare", *given)
    now = pairs(given).prompt_of(0)
    for name in ("prompt", "image_latents"):
        assert not torch.equal(now[name], was[name])
    write(manifest, rows)
