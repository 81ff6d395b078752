"""The VAE takes clips whole where memory allows, in tiles otherwise: one decision for a size, of every family."""

import functools

import numpy as np
import pytest
import torch

from pgdpo.models.encoders import tiling
from pgdpo.models.encoders.alive import Alive
from tests.models.tiny_pipelines import open_tiny, save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_ltx
from tests.models.tiny_wan import save_tiny

CPU = torch.device("cpu")
FAMILIES = {  # family: (how it is saved, a size larger than one tile, one of a tile)
    "wan": (functools.partial(save_tiny, "2.2 ti2v 5b"), (5, 32, 416), (5, 32, 384)),
    "hunyuan_video": (save_tiny_hunyuan_video, (5, 16, 272), (5, 16, 256)),
    "cogvideox": (functools.partial(save_tiny_cogvideox, rotary=True), (9, 256, 32), (9, 240, 32)),
    "ltx": (save_tiny_ltx, (9, 32, 544), (9, 32, 512)),
}
SMALL, LARGE = lambda _: 0, lambda _: 1 << 60


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    save, cut, whole = FAMILIES[request.param]
    return open_tiny(request.param, save(tmp_path_factory.mktemp("tiled"))), cut, whole


def clip(size, seed):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(family, frames, tiled: bool):
    """By diffusers' VAE itself, before the latents are normalised."""
    encoders = family.load_encoders(CPU)
    vae = family.vae_class.from_pretrained(family.source, subfolder="vae", torch_dtype=torch.float32)
    if tiled:
        vae.enable_tiling()
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        return encoders.normalize(vae, vae.encode(pixels).latent_dist.mode())[0]


def test_memory_decides_once_and_the_key_before_it(family, monkeypatch, capfd):
    opened, cut, whole = family
    frames = clip(cut, seed=0)
    expected = {tiled: encoded(opened, frames, tiled) for tiled in (False, True)}
    assert not torch.equal(expected[False], expected[True])
    for asked, free, tiled in (
        ("auto", LARGE, False),
        ("auto", SMALL, True),
        ("whole", SMALL, False),
        ("tiled", LARGE, True),
    ):
        monkeypatch.setattr(opened.model, "vae_tiling", asked)
        monkeypatch.setattr(tiling, "free_bytes", free)
        encoders = opened.load_encoders(CPU)
        assert torch.equal(encoders.encode_video(frames), expected[tiled])
        monkeypatch.setattr(tiling, "free_bytes", SMALL if free is LARGE else LARGE)
        assert torch.equal(encoders.encode_video(frames), expected[tiled]), "decided again"
        said = capfd.readouterr().out.split("clips of")[1:]
        assert len(said) == (asked == "auto" and tiled)
        assert all("encoded in tiles" in line and "x".join(map(str, cut)) in line for line in said)
        assert not encoders.tiling.cuts(whole, "encoded") and not encoders.tiling.of(whole, "encoded")
    decoded = encoders.decode_video(expected[False])
    assert decoded.shape == (*cut, 3)
    encoders.tiling.settle(cut, "decoded", False)
    assert (decoded != encoders.decode_video(expected[False])).any()


def test_the_bytes_of_a_whole_clip_are_those_of_the_real_vae(family):
    """Counted on real tensors, of the real weights; the plan runs on the meta device."""
    opened, cut, _ = family
    encoders = opened.load_encoders(CPU)
    vae = opened.vae_class.from_pretrained(opened.source, subfolder="vae", torch_dtype=torch.float32)
    latents = torch.zeros(1, *opened.clip_to_latents(*cut))
    for way, run, given in (
        ("encoded", encoders.encode, torch.zeros(1, 3, *cut)),
        ("decoded", encoders.decode, latents),
    ):
        with torch.no_grad(), Alive(set()) as alive:
            run(vae, given)
        held = sum(tensor.nbytes for tensor in (given, *vae.parameters(), *vae.buffers()))
        assert encoders.tiling.whole_bytes(cut, way) == pytest.approx(alive.peak + held, rel=0.05)


def test_an_image_goes_the_way_of_its_clips(tmp_path, monkeypatch):
    kind = "2.2 i2v a14b"
    opened = open_tiny("wan", save_tiny(kind, tmp_path), expert="low_noise")
    size = (5, 16, 272)
    picture, found = clip((16, 272), seed=1), {}
    for asked in ("whole", "tiled"):
        monkeypatch.setattr(opened.model, "vae_tiling", asked)
        found[asked] = opened.load_encoders(CPU).encode_image(picture, size[0])["image_latents"]
    black = np.full((*size, 3), 0, np.uint8)
    black[0] = picture
    grey = torch.from_numpy(black).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    grey[:, :, 1:] = 0  # what the pipeline fills up with
    assert not torch.equal(found["whole"], found["tiled"])
    vae = opened.vae_class.from_pretrained(opened.source, subfolder="vae", torch_dtype=torch.float32)
    encoders = opened.load_encoders(CPU)
    for asked in ("whole", "tiled"):
        if asked == "tiled":
            vae.enable_tiling()
        with torch.no_grad():
            assert torch.allclose(encoders.encode(vae, grey)[0], found[asked], atol=1e-5)
