"""The pictures that a model is given: a row's own, or frames of its best clip, of the part that is taken of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgdpo.video import read_video, write_video
from pgdpo.video.picture import read_image
from tests.data.changed_data import stale_differences
from tests.data.test_prepare_groups import index_of, save, tensors_of
from tests.models.families import KINDS
from tests.models.road import CPU
from tests.worlds import run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

KIND = KINDS["wan 2.1 flf2v"]
FRAMES = 13  # of the clips; 5 are taken


@pytest.fixture
def folder(tmp_path, monkeypatch, saved):
    """The working folder, with `config.yaml`, pictures `first.png` and `last.png`, and clips `0.mp4`, ... ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    draws = np.random.default_rng(0)
    for name in ("first", "last"):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"data/{name}.png")
    for number in range(3):
        pixels = draws.integers(0, 256, (FRAMES, 2, 2, 3), dtype=np.uint8)
        write_video(tmp_path / f"data/{number}.mp4", pixels, 8, scale=8)
    data = {"train": "data/train.jsonl", "held_out": None, "num_frames": 5, "fps": 8}
    model = {"encoders": "pipeline"}
    write_config(Path("config.yaml"), "out", saved(KIND.save), data=data, model=model)
    return tmp_path


@pytest.fixture
def expected(folder, saved):
    """`expected(first, last, frames)`: the conditioning of two pictures, each a file's name or (clip, its frame)."""
    encoders = KIND.open(saved(KIND.save)).load_encoders(CPU)

    def picture(of):
        if isinstance(of, str):
            return read_image(Path("data") / of, (16, 16))
        return read_video(Path("data") / f"{of[0]}.mp4", size=(16, 16))[of[1]]

    def encoded(first, last, frames=5):
        return encoders.encode_images({0: picture(first), -1: picture(last)}, frames, "")

    return encoded


def prepared(*overrides, out="out") -> list[dict[str, torch.Tensor]]:
    """The conditioning by pictures of each row."""
    run_pgdpo("prepare", "config.yaml", f"output_dir={out}", "data.latent_dtype=float32", *overrides)
    index = index_of(out)
    assert index["pictures"] == [0, -1] and index["image"] == ["image_embeds", "image_latents"]
    found = (tensors_of(row, index, out) for row in index["pairs"])
    return [{name: row[name] for name in index["image"]} for row in found]


def same(one, other):
    return all(torch.allclose(one[name], other[name], atol=1e-5) for name in one.keys() | other.keys())


PAIR = {"id": "a", "prompt": "x", "chosen": "0.mp4", "rejected": "1.mp4"}
NAMED = {"image": "first.png", "last_image": "last.png"}


def test_a_rows_picture_stands_where_the_clips_themselves_begin_or_end(folder, expected, capfd):
    """Of a part that begins later, or ends earlier, the first and the last frame are the clip's own."""
    save([PAIR | NAMED])
    first, second, third = prepared("data.clip=segments:3")
    assert same(first, expected("first.png", (0, 4)))
    assert same(second, expected((0, 4), (0, 8)))
    assert same(third, expected((0, 8), "last.png"))
    said = capfd.readouterr().out
    assert "2 pairs: what is taken begins later than the clips" in said
    assert "2 pairs: what is taken ends earlier than the clips" in said


def test_the_pictures_that_a_row_does_not_name_are_the_chosen_clips(folder, expected):
    save([PAIR, PAIR | {"id": "b", "last_image": "last.png"}])
    own, named = prepared("data.num_frames=13")
    assert same(own, expected((0, 0), (0, 12), FRAMES)) and same(named, expected((0, 0), "last.png", FRAMES))


def test_a_picture_that_the_model_is_not_given_is_said(folder, saved, capfd):
    save([PAIR | NAMED])
    run_pgdpo("prepare", "config.yaml", f"model.path={saved(KINDS['wan 2.1 i2v'].save)}")
    said = capfd.readouterr().out
    assert "1 pairs name `last_image`, which this model is not given" in said and "name `image`" not in said


def test_a_group_ends_with_the_last_frame_of_its_best_sample(folder, expected):
    """Also where it names a picture and what is taken ends before: other ranks then make it anew."""
    samples = [{"clip": f"{place}.mp4", "rank": place} for place in range(3)]
    save([{"id": "g", "prompt": "x", "samples": samples, **NAMED}])
    [found] = prepared()
    assert same(found, expected("first.png", (0, 4)))
    samples[0]["rank"], samples[2]["rank"] = 2, 0
    save([{"id": "g", "prompt": "x", "samples": samples, **NAMED}])
    kinds = {found.kind for found in stale_differences("config.yaml")}
    assert "picture of a clip" in kinds
    [found] = prepared()
    assert same(found, expected("first.png", (2, 4)))


def test_the_report_shows_what_a_pair_starts_from_and_ends_with(folder, saved):
    save([PAIR | NAMED])
    [held] = prepared("data.num_frames=13")
    run_pgdpo("report", "config.yaml", "data.latent_dtype=float32", "data.num_frames=13")
    encoders = KIND.open(saved(KIND.save)).load_encoders(CPU)
    frames = encoders.decode_video(held["image_latents"])
    for name, frame in (("image", 0), ("last_image", -1)):
        assert np.array_equal(np.asarray(Image.open(f"out/dpo/pairs/000-{name}.png")), frames[frame])
    page = Path("out/dpo/report.html").read_text()
    assert page.count("data:image/png") == 2 and page.index("starts from") < page.index("ends with")
