"""HunyuanVideo's own: guidance that is told to the transformer, and what image-to-video adds."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.cuts import cut_prompts
from tests.models.families import FAMILIES, KINDS
from tests.models.road import CPU, conditioning_of, open_pipeline

REPLACED, CONCATENATED = KINDS["hunyuan_video i2v"], KINDS["hunyuan_video i2v 33ch"]


@pytest.mark.parametrize("guidance", [1.0, 3.3, 6.0, 6.02, 7.25])
def test_guidance_is_rounded_before_it_is_multiplied(guidance, saved):
    family = FAMILIES["hunyuan_video"].open(saved(FAMILIES["hunyuan_video"].save), guidance=guidance)
    for dtype in (torch.float32, torch.bfloat16):
        told = family.told_guidance(torch.zeros(2, 4, 1, 2, 2, dtype=dtype))
        assert torch.equal(told, torch.tensor([guidance] * 2, dtype=dtype) * 1000.0)


def test_what_is_told_and_rounded_follows_from_the_condition(saved):
    found = [kind.open(saved(kind.save)) for kind in (FAMILIES["hunyuan_video"], REPLACED, CONCATENATED)]
    assert [family.told for family in found] == [(6.0,), (6.0,), ()]
    assert [family.told_rounded.partition(", ")[0] for family in found] == [
        "guidance and timestep",
        "guidance",
        "timestep",
    ]
    with pytest.raises(InputError, match="model.guidance is 6, .* has no input for it"):
        CONCATENATED.open(saved(CONCATENATED.save), guidance=6.0)


def test_the_loss_leaves_out_a_first_frame_that_is_the_image(saved):
    latents = torch.zeros(2, 4, 3, 4, 6)
    assert REPLACED.open(saved(REPLACED.save)).loss_mask(latents, {}).tolist() == [0, 1, 1]
    assert CONCATENATED.open(saved(CONCATENATED.save)).loss_mask(latents, {}) is None


@pytest.mark.parametrize("kind", [REPLACED, CONCATENATED], ids=["token_replace", "latent_concat"])
def test_the_image_stands_where_the_condition_has_it(kind, saved):
    family = kind.open(saved(kind.save))
    noisy, image = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 4, 1, 4, 6)
    conditioning = conditioning_of(family, ["a", "a"]) | {"image_latents": image}
    given = {}

    def transformer(**inputs):
        given.update(inputs)
        return (inputs["hidden_states"][:, :4],)

    family.predict(transformer, noisy, torch.tensor([0.25, 0.75]), conditioning)
    found, behind = given["hidden_states"][:, :4], given["hidden_states"][:, 4:]
    if kind is REPLACED:
        assert torch.equal(found[:, :, :1], image) and torch.equal(found[:, :, 1:], noisy[:, :, 1:])
        assert behind.numel() == 0
    else:
        assert torch.equal(found, noisy)
        assert torch.equal(behind[:, :4, :1], image) and behind[:, :, 1:].abs().sum() == 0
        assert torch.equal(behind[:, 4, 0], torch.ones(2, 4, 6))


def test_pairs_that_were_prepared_for_the_other_condition_are_not_taken(saved, tmp_path):
    """The two models have the same encoders, of which each takes other tokens of the image."""
    found = []
    for condition in ("token_replace", "latent_concat"):
        folder = shutil.copytree(saved(REPLACED.save), tmp_path / condition)
        file = folder / "transformer" / "config.json"
        config = json.loads(file.read_text()) | {"image_condition_type": condition}
        file.write_text(json.dumps(config))
        found.append(REPLACED.open(folder).load_encoders(CPU))
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].parts["text"] == found[1].parts["text"]
    assert found[0].parts["clips"] != found[1].parts["clips"]


def test_prompts_are_read_with_their_pictures_as_the_pipeline_reads_them(saved):
    """A long one too, whose end the pipeline crops, and a negative one, which it reads beside a black picture."""
    encoders = REPLACED.open(saved(REPLACED.save)).load_encoders(CPU)
    pipeline, frames = open_pipeline(REPLACED, saved(REPLACED.save)), REPLACED.size[0]
    long = " ".join(["red", "circle"] * 130)  # 260 tokens
    black, grey = (np.full((32, 48, 3), shade, dtype=np.uint8) for shade in (0, 90))
    (negative,) = encoders.encode_prompts(["still"])
    found = {"still": negative} | {
        prompt: encoders.encode_images({0: grey}, frames, prompt) for prompt in ("a red ring", long)
    }
    for prompt, picture, interleave in (("still", black, 2), ("a red ring", grey, 4), (long, grey, 4)):
        with torch.no_grad():
            embeds, pooled, mask = pipeline.encode_prompt(
                Image.fromarray(picture), [prompt], image_embed_interleave=interleave
            )
        assert torch.equal(found[prompt]["prompt"], embeds[mask.bool()])
        assert torch.equal(found[prompt]["pooled"], pooled[0])
    (cut,) = [cut for cut in cut_prompts(encoders, [long, "a red ring"])[long] if cut.reader.name == "Llava"]
    assert (cut.tokens, cut.kept) == (260, 252)
    same = encoders.encode_images({0: grey}, frames, " ".join(long.split()[: cut.kept]))
    assert torch.equal(same["prompt"][: 144 + 252], found[long]["prompt"])
