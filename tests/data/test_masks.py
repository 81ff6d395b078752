"""Region masks on the latent grid: what the clips show there, by numpy; and masks that are refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pgdpo.data.clips import Sampling, plan_pair
from pgdpo.data.masks import pooled, read_mask
from pgdpo.messages.errors import InputError
from pgdpo.video import read_video, write_video
from tests.worlds import read_manifest

pytestmark = pytest.mark.quick

FRAMES, HEIGHT, WIDTH = 9, 48, 64


def block(top, left, height, width, frames=FRAMES):
    """White inside, black outside, [frames, HEIGHT, WIDTH, 3]."""
    clip = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
    clip[:, top : top + height, left : left + width] = 255
    return clip


@pytest.fixture
def row(tmp_path):
    """`row(mask)`: a pair of 9 frames at 48x64 with a mask: an array [F, H, W, 3] for a clip, [H, W, 3] a picture."""
    write_video(tmp_path / "a.mp4", block(8, 8, 16, 16), 8)
    write_video(tmp_path / "b.mp4", block(0, 0, 16, 16), 8)

    def make(mask, fps=8, name=None):
        if isinstance(mask, str):
            (tmp_path / name).write_text(mask)
        elif mask.ndim == 4:
            name = "mask.mp4"
            write_video(tmp_path / name, mask, fps)
        else:
            name = name or "mask.png"
            Image.fromarray(mask).save(tmp_path / name)
        entry = {"id": "p", "prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4", "mask": name}
        (tmp_path / "rows.jsonl").write_text(json.dumps(entry) + "\n")
        return read_manifest(tmp_path / "rows.jsonl")[0]

    return make


def planned(pair, size):
    return plan_pair(pair, size, Sampling(8))


def shares(inside, grid):
    """Mean of `inside` [F, H, W] over each element's pixels: the first frame alone, the others in groups."""
    frames, height, width = grid
    rows, columns = inside.shape[1] // height, inside.shape[2] // width
    step = (len(inside) - 1) // (frames - 1) if frames > 1 else len(inside)
    found = np.empty(grid)
    for f, y, x in np.ndindex(*grid):
        times = slice(max(0, 1 + (f - 1) * step), 1 + f * step) if frames > 1 else slice(None)
        found[f, y, x] = inside[times, y * rows : (y + 1) * rows, x * columns : (x + 1) * columns].mean()
    return found


@pytest.mark.parametrize("grid", [(3, 6, 8), (9, 12, 16), (5, 48, 64), (1, 3, 4)])
def test_an_element_holds_the_share_of_its_pixels_and_frames(grid):
    inside = np.random.default_rng(0).random((FRAMES, HEIGHT, WIDTH)) < 0.3
    found = pooled(torch.from_numpy(inside), grid)
    np.testing.assert_allclose(found.numpy(), shares(inside, grid), rtol=1e-6)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (24, 32), (32, 32), (48, 32)])
@pytest.mark.parametrize("name", ["mask.png", "mask.jpg", "mask.mp4"])
def test_a_mask_lies_where_the_clip_shows_what_it_marks(row, tmp_path, size, name):
    """The mask marks the chosen clip's white block: after any crop, the pixels that the clip has white."""
    mask = block(8, 8, 16, 16)
    pair = row(mask, name=name) if name == "mask.mp4" else row(mask[0], name=name)
    white = read_video(pair.clips["chosen"], num_frames=FRAMES, size=size).mean(-1) >= 128
    found = read_mask(pair, planned(pair, (FRAMES, *size)), (3, size[0] // 8, size[1] // 8))
    assert found.dtype == torch.float16 and found.shape == (1, 3, size[0] // 8, size[1] // 8)
    np.testing.assert_allclose(found[0].numpy(), shares(white, found.shape[1:]), atol=1e-3)
    assert 0 < found.float().mean() < 0.5


def test_a_clip_marks_every_frame_by_itself(row):
    mask = block(0, 0, 16, 16)
    mask[5:] = 0
    found = read_mask(row(mask), planned(row(mask), (FRAMES, HEIGHT, WIDTH)), (3, 6, 8))[0]
    assert found[:, 0, 0].tolist() == [1, 1, 0]
    led = read_mask(row(mask), planned(row(mask), (FRAMES, HEIGHT, WIDTH)), (5, 6, 8), 2)[0]
    assert torch.equal(led, found[[0, 0, 0, 1, 2]])  # frames before the clip's own are as its first


@pytest.mark.parametrize(
    ("mask", "more", "message"),
    [
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), {}, "nothing in it is white"),
        (block(0, 0, 8, 8)[0, :, :32], {}, "width is 32 and the pair's clips have 64"),
        (block(0, 0, 8, 8)[:5], {}, "num_frames is 5 and the pair's clips have 9"),
        (block(0, 0, 8, 8), {"fps": 16}, "fps is 16 and the pair's clips have 8"),
        ("<html>not found</html>", {"name": "mask.png"}, "cannot be read as a picture"),
        ("<html>not found</html>", {"name": "mask.mp4"}, "not a video"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(row, mask, more, message):
    pair = row(mask, **more)
    with pytest.raises(InputError, match=rf"pair `p`, mask: .*mask\..*{message}"):
        read_mask(pair, planned(pair, (FRAMES, HEIGHT, WIDTH)), (3, 6, 8))
