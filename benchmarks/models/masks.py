"""Text's padding under every attention backend that runs on this machine, for every family:

    python -m benchmarks.models.masks

-> results/masks.json. Tiny pipelines of diffusers' classes with random weights, two samples whose prompts have 5 and 17
tokens. Against `native`: the prediction and the gradient by all weights. Influence: the largest change of a prediction
when the padding's embeddings are others. Where CUDA is missing, xformers' kernel is stood in for by what it computes,
softmax(q k' + bias) v, and the rows say so. "before" is diffusers' own path, which gives that kernel the mask's ones
and zeros as a bias. Bytes of the bias are computed, from the shapes of configs/hunyuan_video.yaml.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from pgdpo.config.read import load_config
from pgdpo.data.prepared import padded_text
from pgdpo.data.visits.loading import stack_conditioning
from pgdpo.engine.attention import additive, choose_attention, chooses_backend
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import write_json
from pgdpo.models.family import Family
from tests.models.families import FAMILIES

from ..report import RESULTS

FILE = RESULTS / "masks.json"
LENGTHS, PADDED = (5, 17), 24
XFORMERS = AttentionBackendName.XFORMERS


def inputs(family: Family, size: tuple[int, int, int]) -> tuple:
    """Noisy latents, sigma and padded conditioning of one sample for each of LENGTHS."""
    generator = torch.Generator().manual_seed(0)
    shape = family.latent_shape(*size)
    with torch.device("meta"):
        kinds = family.example_conditioning(1, shape)
    own = {name: kinds[name].shape[1:] for name in kinds.keys() - {"prompt", "prompt_mask"}}
    texts = [{"prompt": torch.randn(n, kinds["prompt"].shape[-1], generator=generator)} for n in LENGTHS]
    texts = [
        text | {name: torch.randn(shape, generator=generator) for name, shape in own.items()}
        for text in texts
    ]
    conditioning = stack_conditioning([padded_text(text, PADDED) for text in texts])
    return torch.randn(len(LENGTHS), *shape, generator=generator), torch.tensor([0.3, 0.8]), conditioning


def measured(family: Family, transformer: torch.nn.Module, sample: tuple) -> dict[str, torch.Tensor]:
    """`prediction`, its `change` with other padding, and the `gradient` by all weights where there is a backward."""
    noisy, sigma, conditioning = sample
    other = dict(conditioning, prompt=conditioning["prompt"].clone())
    other["prompt"][~other["prompt_mask"]] = 30.0
    with torch.no_grad():
        prediction = family.predict(transformer, noisy, sigma, conditioning)
        change = family.predict(transformer, noisy, sigma, other) - prediction
    found = {"prediction": prediction, "change": change}
    with contextlib.suppress(NotImplementedError):
        family.predict(transformer, noisy, sigma, conditioning).square().mean().backward()
        gradients = [p.grad.flatten() for p in transformer.parameters() if p.grad is not None]
        found["gradient"] = torch.cat(gradients)
    return found


def against(found: dict[str, torch.Tensor], native: dict[str, torch.Tensor]) -> dict:
    row = {}
    for name in ("prediction", "gradient"):
        if name in found:
            off, norm = found[name] - native[name], native[name].norm()
            row[name] = {"max_abs": float(off.abs().max()), "relative": float(off.norm() / norm)}
    return row | {"influence_of_padding": float(found["change"].abs().max())}


def stand_in(query, key, value, bias=None, dropout=0.0, scale=None) -> torch.Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return ((weights if bias is None else weights + bias).softmax(-1) @ value).transpose(1, 2)


@contextlib.contextmanager
def xformers_stood_in_for() -> Iterator[None]:
    with mock.patch("diffusers.models.attention_dispatch.xops.memory_efficient_attention", stand_in):
        yield


def rows_of(name: str) -> Iterator[dict]:
    kind = FAMILIES[name]
    size = kind.size
    with tempfile.TemporaryDirectory() as folder:
        family = kind.open(kind.save(Path(folder) / "model"))

        def run(backend: str) -> dict[str, torch.Tensor]:
            transformer = family.load_transformer(dtype=torch.float32)
            if backend != "native" and not chooses_backend(transformer):
                raise NotImplementedError("diffusers calls torch's attention, whatever the backend")
            choose_attention(transformer, family, backend)
            return measured(family, transformer, inputs(family, size))

        native = run("native")
        for backend in AttentionBackendName:
            row = {"family": name, "masks_text": family.masks_text, "backend": backend.value}
            stood = backend is XFORMERS and not torch.cuda.is_available()
            try:
                with xformers_stood_in_for() if stood else contextlib.nullcontext():
                    yield row | against(run(backend.value), native) | ({"stand_in": True} if stood else {})
            except Exception as error:  # each fails in its own way where it does not run
                yield row | {"not_measured": " ".join(f"{type(error).__name__}: {error}".split())[:160]}
        if name == "hunyuan_video":
            yield before(family, size, native)


def before(family: Family, size: tuple[int, int, int], native: dict[str, torch.Tensor]) -> dict:
    """HunyuanVideo by xformers as diffusers has it, the mask handed on as it is."""
    transformer = family.load_transformer(dtype=torch.float32)
    transformer.set_attention_backend(XFORMERS.value)
    backends = _AttentionBackendRegistry._backends
    with xformers_stood_in_for(), mock.patch.dict(backends, {XFORMERS: backends[XFORMERS].__wrapped__}):
        found = measured(family, transformer, inputs(family, size))
    row = {"family": "hunyuan_video", "masks_text": True, "backend": "xformers, before", "stand_in": True}
    return row | against(found, native)


def bias_bytes() -> dict:
    """Of xformers' bias in one block of the shipped configuration, bf16."""
    data = load_config("configs/hunyuan_video.yaml").data
    video = ((data.num_frames - 1) // 4 + 1) * (data.height // 16) * (data.width // 16)
    heads = inspect.signature(HunyuanVideoTransformer3DModel).parameters["num_attention_heads"].default
    text, samples = 256, 2
    tokens = video + text
    one = additive(torch.ones(2 * samples, 1, 1, tokens, dtype=torch.bool), torch.bfloat16)
    return {
        "computed": True,
        "tokens": tokens,
        "heads": heads,
        "before, one pair": samples * heads * tokens**2 * 2,
        "now, one pair": 0,
        "now, two pairs with prompts of several lengths": one.untyped_storage().nbytes(),
    }


def main() -> None:
    rows = [row for name in FAMILIES for row in rows_of(name)]
    elsewhere: dict[str, dict[str, str]] = {name: {} for name in FAMILIES}
    for row in rows:
        if "not_measured" in row:
            elsewhere[row["family"]][row["backend"]] = row["not_measured"]
        else:
            print(row)
    found = {"rows": [row for row in rows if "not_measured" not in row], "not_measured": elsewhere}
    write_json(FILE, found | {"bias_bytes": bias_bytes(), "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
