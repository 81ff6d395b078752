"""The VAE takes clips whole where memory allows, in tiles otherwise: one decision for a size, of every family."""

import numpy as np
import pytest
import torch

from pgdpo.models.encoders import tiling
from pgdpo.models.encoders.alive import Alive
from tests.models.families import KINDS, PIPELINES

CPU = torch.device("cpu")
SMALL, LARGE = lambda _: 0, lambda _: 1 << 60


# One pipeline of each VAE's class and layout.
VAES = [
    name for name in PIPELINES if name not in ("wan 2.1 t2v", "cogvideox 2b", "cogvideox 1.5", "ltx 0.9.1")
]


@pytest.fixture(params=VAES, scope="module")
def family(request, saved):
    kind = KINDS[request.param]
    return kind.open(saved(kind.save)), *kind.tiled


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


def test_an_image_goes_the_way_of_its_clips(saved, monkeypatch):
    kind = KINDS["wan 2.2 i2v a14b low"]
    opened = kind.open(saved(kind.save))
    size = kind.tiled[0]
    picture, found = clip((16, 272), seed=1), {}
    for asked in ("whole", "tiled"):
        monkeypatch.setattr(opened.model, "vae_tiling", asked)
        found[asked] = opened.load_encoders(CPU).encode_images({0: picture}, size[0], "")["image_latents"]
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
