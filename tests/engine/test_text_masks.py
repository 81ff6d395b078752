"""Padding of text: trimmed, never attended to; no mask where none is needed. By every backend that runs here."""

import json

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import SampleSettings
from pgdpo.config.read import load_config
from pgdpo.data.prepared import padded_text
from pgdpo.data.visits.loading import stack_conditioning
from pgdpo.engine import attention
from pgdpo.engine.memory import save_memory
from pgdpo.messages.errors import InputError
from tests.models.families import FAMILIES
from tests.models.road import Road
from tests.worlds import metrics, run_pgdpo

MASKED = [name for name, kind in FAMILIES.items() if kind.masks_text]
HUNYUAN = FAMILIES["hunyuan_video"]
BACKENDS = ("native", "_native_math", "flex", "xformers")


class Cutlass:
    """Stands for xformers' kernel, which has no CPU operator: adds its bias, and refuses what cutlass does."""

    def __init__(self) -> None:
        self.biases: list[torch.Tensor] = []

    def __call__(self, query, key, value, bias=None, dropout=0.0, scale=None):
        if bias is not None:
            assert bias.dtype == query.dtype and bias.stride(-1) == 1
            assert all(stride % attention.ALIGNED == 0 for stride in bias.stride()[:-1])
            self.biases.append(bias)
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return ((weights if bias is None else weights + bias).softmax(-1) @ value).transpose(1, 2)


@pytest.fixture
def cutlass(monkeypatch) -> Cutlass:
    pytest.importorskip("xformers.ops")
    kernel = Cutlass()
    monkeypatch.setattr(attention_dispatch.xops, "memory_efficient_attention", kernel)
    return kernel


def open_tiny(name: str, saved, **settings):
    return FAMILIES[name].open(saved(FAMILIES[name].save), **settings)


@pytest.fixture(scope="module")
def opened(saved):
    """`opened(name, backend)`: (family, its transformer with that backend)."""

    def build(name: str, backend: str, **settings):
        family = open_tiny(name, saved, attention=backend, **settings)
        transformer = family.load_transformer(dtype=torch.float32)
        attention.choose_attention(transformer, family, backend)
        save_memory(transformer, family.model)
        return family, transformer

    return build


def inputs(family, lengths: list[int], seed: int = 0) -> tuple:
    """Noisy latents, sigma and padded conditioning of one sample for each length of text."""
    generator = torch.Generator().manual_seed(seed)
    shape = family.latent_shape(*FAMILIES[family.model.family].size)
    widths = {name: tensor.shape for name, tensor in family.example_conditioning(1, shape).items()}
    encoded = [{"prompt": torch.randn(n, widths["prompt"][-1], generator=generator)} for n in lengths]
    if "pooled" in widths:
        encoded = [
            text | {"pooled": torch.randn(widths["pooled"][-1], generator=generator)} for text in encoded
        ]
    conditioning = stack_conditioning([padded_text(text, 24) for text in encoded])
    noisy = torch.randn(len(lengths), *shape, generator=generator)
    return noisy, torch.linspace(0.2, 0.9, len(lengths)), conditioning


def predicted(family, transformer, noisy, sigma, conditioning) -> torch.Tensor:
    with torch.no_grad():
        return family.predict(transformer, noisy, sigma, conditioning)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKED)
def test_padding_has_no_influence(opened, cutlass, name, backend):
    family, transformer = opened(name, backend)
    noisy, sigma, conditioning = inputs(family, [5, 17])
    other = {**conditioning, "prompt": conditioning["prompt"].clone()}
    other["prompt"][~other["prompt_mask"]] = 30.0
    found = predicted(family, transformer, noisy, sigma, conditioning)
    assert torch.equal(predicted(family, transformer, noisy, sigma, other), found)
    native = predicted(*opened(name, "native"), noisy, sigma, conditioning)
    torch.testing.assert_close(found, native, rtol=1e-4, atol=1e-5)


def test_a_bias_is_not_spread_over_heads_and_queries(opened, cutlass):
    family, transformer = opened("hunyuan_video", "xformers")
    predicted(family, transformer, *inputs(family, [5, 17]))
    assert cutlass.biases
    for bias in cutlass.biases:
        held = bias.untyped_storage().nbytes() / bias.element_size()
        assert held <= bias.shape[0] * (bias.shape[-1] + attention.ALIGNED)


@pytest.mark.parametrize("name", MASKED)
def test_trimmed_text_gives_what_padded_text_does(opened, name):
    family, transformer = opened(name, "native")

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 24), min_size=1, max_size=3), st.integers(0, 99))
    def alike(lengths, seed):
        noisy, sigma, conditioning = inputs(family, lengths, seed)
        trimmed = family.trimmed(conditioning)
        assert trimmed["prompt"].shape[1] == max(lengths)
        assert ("prompt_mask" in trimmed) == (len(set(lengths)) > 1)
        torch.testing.assert_close(
            predicted(family, transformer, noisy, sigma, trimmed),
            predicted(family, transformer, noisy, sigma, conditioning),
            rtol=1e-4,
            atol=1e-5,
        )

    alike()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": "full"},
        pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", MASKED)
def test_a_pair_trains_with_a_backend_that_takes_no_mask(opened, name, settings):
    """`_native_flash` raises where a mask comes: in the forward, and in what backward recomputes of it."""
    gradients = {}
    for backend in ("native", "_native_flash"):
        torch._dynamo.reset()
        family, transformer = opened(name, backend, **settings)
        noisy, sigma, conditioning = inputs(family, [7, 7])
        family.predict(transformer, noisy, sigma, family.trimmed(conditioning)).square().mean().backward()
        gradients[backend] = torch.cat(
            [p.grad.flatten() for p in transformer.parameters() if p.grad is not None]
        )
    torch.testing.assert_close(gradients["_native_flash"], gradients["native"], rtol=1e-4, atol=1e-6)


def test_a_prompt_is_sampled_with_a_backend_that_takes_no_mask(opened):
    """By the pipeline, and with guidance by an empty prompt of another length."""
    found = {}
    for backend in ("native", "_native_flash"):
        family, transformer = opened("hunyuan_video", backend)
        noise, _, conditioning = inputs(family, [7])
        _, _, empty = inputs(family, [2])
        found[backend] = family.sample(transformer, noise, conditioning, empty, SampleSettings(2, 2.0))
    torch.testing.assert_close(found["_native_flash"], found["native"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(MASKED)))
def test_text_whose_padding_counts_keeps_it(saved, name):
    family = open_tiny(name, saved)
    _, _, conditioning = inputs(family, [5, 17])
    assert family.trimmed(conditioning).keys() == conditioning.keys()
    assert all(torch.equal(family.trimmed(conditioning)[key], conditioning[key]) for key in conditioning)


@pytest.mark.slow
def test_blocks_are_not_compiled_for_each_length_of_text(opened):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    family, transformer = opened("hunyuan_video", "native", compile="aot_eager")
    graphs = []
    for length in (5, 9, 6, 17):
        noisy, sigma, conditioning = inputs(family, [length, length])
        predicted(family, transformer, noisy, sigma, family.trimmed(conditioning))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1]  # for the first length, and once more for all others
    torch._dynamo.reset()


def config_of(name, saved, world, tmp_path, *overrides):
    road = Road(FAMILIES[name], saved(FAMILIES[name].save), world, tmp_path)
    return load_config(str(road.config()), list(overrides))


def refusal(config, family) -> str:
    with pytest.raises(InputError) as refused:
        attention.check_attention(config, family, torch.device("cpu"))
    return str(refused.value)


def test_a_backend_that_takes_no_mask_is_refused_where_one_comes(saved, world, tmp_path):
    family = open_tiny("hunyuan_video", saved)
    flash = "model.attention=_native_flash"
    for several in ("train.micro_batch_groups", "evaluate.batch"):
        sizes = {"train.micro_batch_groups": 1, "evaluate.batch": 1, several: 2}
        options = (flash, *(f"{key}={size}" for key, size in sizes.items()))
        text = refusal(config_of("hunyuan_video", saved, world, tmp_path, *options), family)
        assert "model.attention is '_native_flash': it takes no mask" in text
        assert f"{several} is 2: prompts of several lengths" in text
    alone = (flash, "evaluate.batch=1", "train.micro_batch_groups=1")
    one = config_of("hunyuan_video", saved, world, tmp_path, *alone)
    attention.check_attention(one, family, torch.device("cpu"))
    several = config_of("ltx", saved, world, tmp_path, flash, "train.micro_batch_groups=2")
    attention.check_attention(several, open_tiny("ltx", saved), torch.device("cpu"))


def test_a_backend_that_attends_to_padding_is_refused(saved, world, tmp_path, monkeypatch, cutlass):
    """xformers as diffusers has it adds the mask's ones and zeros to the scores."""
    options = ("model.attention=xformers", "train.micro_batch_groups=2")
    family = open_tiny("hunyuan_video", saved)
    config = config_of("hunyuan_video", saved, world, tmp_path, *options)
    attention.check_attention(config, family, torch.device("cpu"))
    theirs = _AttentionBackendRegistry._backends[AttentionBackendName.XFORMERS]
    monkeypatch.setitem(
        _AttentionBackendRegistry._backends, AttentionBackendName.XFORMERS, theirs.__wrapped__
    )
    assert "attends to padding" in refusal(config, family)


@pytest.mark.usefixtures("eager_kernels")
def test_cached_errors_of_other_batches_are_to_the_bit_the_policys(saved, world, tmp_path):
    """Pairs with prompts of six lengths meet in other batches than they did when the errors were computed."""
    road = Road(HUNYUAN, saved(HUNYUAN.save), world, tmp_path)
    toy = world / "out" / "toy"
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()[:6]]
    rows = [row | {"prompt": " ".join(["ball"] * 2 * n)} for n, row in enumerate(rows, start=1)]
    manifest = toy / "six-lengths.jsonl"
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = (road.config(), f"data.train={manifest}", "train.micro_batch_groups=2", "train.cached_draws=1")
    for command in ("prepare", "reference"):
        run_pgdpo(command, *given)
    still = ("train.steps=6", "train.learning_rate=1e-30", "train.warmup_steps=0")
    run_pgdpo("train", *given, *still, "train.reference=cached", "name=cached")
    assert [row["margin"] for row in metrics(tmp_path / "out", "cached")] == [0.0] * 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no flash attention in fp32")
@pytest.mark.usefixtures("eager_kernels")
def test_a_run_of_one_pair_a_forward_takes_a_backend_without_masks(saved, world, tmp_path):
    """From the command on: FLOPs, which are counted on a model of their own, are asked for too."""
    road = Road(HUNYUAN, saved(HUNYUAN.save), world, tmp_path)
    options = ("train.micro_batch_groups=1", "evaluate.batch=1", "model.attention=_native_flash")
    given = (road.config(), *options)
    for command in ("prepare", "train"):
        run_pgdpo(command, *given)
    first, second = metrics(tmp_path / "out", "dpo")
    assert first["margin"] == 0.0 != second["margin"]
