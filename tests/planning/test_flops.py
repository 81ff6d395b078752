"""Counted FLOPs against two independent counts: arithmetic from shapes, and the operators of a real backward."""

from math import prod
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pgdpo.config.read import load_config
from pgdpo.diffusion.streams import by_stream
from pgdpo.engine.memory import save_memory
from pgdpo.engine.policy import build_policy
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.planning import hardware
from pgdpo.planning.cards import CARDS, find_card
from pgdpo.planning.costs.flops import SampleFlops
from pgdpo.planning.hardware import machine
from tests.models.families import FAMILIES
from tests.worlds import write_config

DEPTH, WIDTH, FFN, CHANNELS, PATCH, TEXT, FREQUENCIES = 5, 128, 801, 48, (1, 2, 2), 64, 16  # of `bare_wan`
WORDS = 8  # that the toy's encoder gives
RANK = 3


class Cost(NamedTuple):
    forward: int
    backward: int

    @classmethod
    def of(cls, *parts: "Cost") -> "Cost":
        return cls(*map(sum, zip(*parts, strict=True)))


def wan(latents: tuple[int, int, int], lora: bool) -> tuple[Cost, int]:
    """(a forward and its backward, the forward's part in the blocks) by the shapes alone."""
    tokens, patch = prod(n // p for n, p in zip(latents, PATCH, strict=True)), CHANNELS * prod(PATCH)

    def linear(rows: int, width: int, out: int, *, adapted: bool = False, flows: bool = True) -> Cost:
        """`flows`: the input has a gradient. Each gradient of a product costs as much as the product."""
        base, rank = 2 * rows * width * out, RANK if adapted and lora else 0
        down, up = 2 * rows * width * rank, 2 * rows * rank * out
        return Cost(base + down + up, base * (flows + (not lora)) + down * (1 + flows) + 2 * up)

    def attention(keys: int) -> Cost:
        return Cost(4 * tokens * keys * WIDTH, 8 * tokens * keys * WIDTH)

    def block(flows: bool) -> Cost:
        return Cost.of(
            *[linear(tokens, WIDTH, WIDTH, adapted=True, flows=flows)] * 3,
            linear(tokens, WIDTH, WIDTH, adapted=True),
            attention(tokens),
            *[linear(tokens, WIDTH, WIDTH, adapted=True)] * 2,
            *[linear(WORDS, WIDTH, WIDTH, adapted=True, flows=not lora)]
            * 2,  # of embeddings that do not train
            attention(WORDS),
            linear(tokens, WIDTH, FFN),
            linear(tokens, FFN, WIDTH),
        )

    def embeds(rows: int, width: int, out: int, *, first: bool = False) -> Cost:
        """Before the blocks: under LoRA nothing here trains and nothing has a gradient."""
        forward, backward = linear(rows, width, out, flows=not first)
        return Cost(forward, 0 if lora else backward)

    blocks = [block(flows=not lora or number > 0) for number in range(DEPTH)]
    whole = Cost.of(
        *blocks,
        embeds(tokens, patch, WIDTH, first=True),
        embeds(WORDS, TEXT, WIDTH, first=True),
        embeds(WORDS, WIDTH, WIDTH),
        embeds(1, FREQUENCIES, WIDTH, first=True),
        embeds(1, WIDTH, WIDTH),
        embeds(1, WIDTH, 6 * WIDTH),
        linear(tokens, WIDTH, patch),
    )
    return whole, sum(each.forward for each in blocks)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@settings(deadline=None, max_examples=1)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_wan_costs_what_its_shapes_say(bare_wan, lora, frames, height, width):
    adapter = {"rank": RANK, "alpha": 4} if lora else None
    model = {"family": "wan", "path": str(bare_wan), "encoders": "toy", "adapter": adapter}
    config = load_config("quickstart.yaml", [f"model={model}".replace("None", "null")])
    latents = frames, 2 * height, 2 * width
    found = SampleFlops(open_family(config.model), config, {"video": (CHANNELS, *latents)})
    expected, blocks = wan(latents, lora)
    assert [each.total() for each in found.policy[:2]] == list(expected)
    assert found.plain.total() == wan(latents, lora=False)[0].forward
    again = {
        kind: found.again(load_config("quickstart.yaml", [f"model.gradient_checkpointing={kind}"]))
        for kind in ("none", "selective", "full")
    }
    tokens = frames * height * width
    assert again["none"] == 0 and again["full"] == blocks
    assert again["full"] - again["selective"] == DEPTH * 4 * tokens * (tokens + WORDS) * WIDTH


ATEN = torch.ops.aten


def attention_flops(query, key, *_, **__) -> int:
    """Of queries against keys, and of the weights against the values."""
    batch, heads, rows, width = query
    return 4 * batch * heads * rows * key[2] * width


def attention_backward_flops(_, *shapes, **__) -> int:
    """Gradients of both products' factors; that flash attention makes the weights anew does not count."""
    return 2 * attention_flops(*shapes)


OPERATORS = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        pytest.param(
            name, weights, marks=() if (weights == "full") == (name == "cogvideox") else pytest.mark.slow
        )
        for name in FAMILIES
        for weights in ("lora", "full")
    ],
)
def test_a_real_backward_runs_what_is_counted(name, weights, saved, tmp_path):
    kind = FAMILIES[name]
    frames, height, width = kind.size
    model = {"family": name, "path": str(saved(kind.save)), "encoders": "pipeline", **kind.keys}
    model["adapter"] = {"rank": 2, "alpha": 2} if weights == "lora" else None
    data = {"num_frames": frames, "height": height, "width": width}
    config = load_config(write_config(tmp_path / "c.yaml", tmp_path, tmp_path, model=model, data=data))
    family, transformer = build_policy(config, torch.device("cpu"))
    shapes = family.stream_shapes(frames, height, width)
    counted = SampleFlops(family, config, shapes)
    for checkpointing in ("none", "full"):
        asked = config.model.model_copy(update={"gradient_checkpointing": checkpointing})
        save_memory(transformer, asked)
        with FlopCounterMode(display=False, custom_mapping=OPERATORS) as found:
            conditioning = {
                key: torch.ones_like(value)
                for key, value in family.example_conditioning(1, shapes["video"]).items()
            }
            noisy = {name: torch.ones(1, *shape) for name, shape in shapes.items()}
            noisy = noisy if len(noisy) > 1 else noisy["video"]
            made = family.predict(transformer.train(), noisy, torch.tensor([0.5]), conditioning)
            sum(each.sum() for each in by_stream(made).values()).backward()
        again = counted.again(config.model_copy(update={"model": asked}))
        assert found.get_total_flops() == sum(each.total() for each in counted.policy[:2]) + again


@pytest.mark.parametrize(
    ("name", "card"),
    [("NVIDIA GeForce RTX 4090", "RTX 4090"), ("rtx4090", "RTX 4090"), ("4090", "RTX 4090"),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None),
     ("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("NVIDIA A100-SXM4-80GB", "A100"), ("a100 40 gb", "A100 40GB"),
     ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"), ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
     ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("h100nvl", "H100 NVL"),
     ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA H20", "H20"), ("NVIDIA H200", "H200"), ("NVIDIA L4", "L4"),
     ("NVIDIA L40S", "L40S"), ("NVIDIA L40", None), ("NVIDIA RTX A6000", "RTX A6000"),
     ("A100-SXM-64GB", None), ("H100 64GB", None), ("H20 141GB", None), ("A800 40GB", None), ("H800 PCIe", None),
     ("A100PCIe40GB", "A100 PCIe 40GB"), ("A100_40GB", "A100 40GB"), ("A100-40", "A100 40GB"), ("a100 80g", "A100"),
     ("a10040gb", "A100 40GB"), ("a100sxm4 40 GiB", "A100 40GB"), ("H100 94GB", "H100 NVL"), ("L4 24GB", "L4"),
     ("RTX 4090 SXM", None), ("L40S PCIe 48GB", "L40S"), ("H200 SXM 141GB", "H200"), ("H20096GB", None),
     ("H100 NVL PCIe", "H100 NVL"), ("L4048GB", None), ("MI300X OAM 192GB", "MI300X"), ("B200 192GB", "B200"),
     ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("rtx6000ada", "RTX 6000 Ada"),
     ("AMD Instinct MI300X", "MI300X"), ("TX-9", None)],
)  # fmt: skip
def test_cards_have_the_names_that_people_and_torch_give_them(name, card):
    assert find_card(name) is (None if card is None else CARDS[card])


def test_a_variant_that_is_not_known_is_refused_beside_those_that_are():
    where = {"gpus": 1, "nodes": 1, "memory_gb": None, "mfu": 0.35, "disk_gb_per_s": 1.0}
    with pytest.raises(
        InputError, match="known are A100, A100 40GB, A100 PCIe, A100 PCIe 40GB: name the one"
    ):
        machine(name="A100-SXM-64GB", **where)
    with pytest.raises(InputError, match="known are RTX 3090, .*, MI300X: name the one"):
        machine(name="L40", **where)


def test_this_machines_card_has_the_memory_that_it_has(monkeypatch):
    monkeypatch.setattr(hardware, "this_gpu", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(hardware, "this_memory", lambda: 85_094_825_984)
    where = {"gpus": 1, "nodes": 1, "mfu": 0.35, "disk_gb_per_s": 1.0}
    assert machine(name=None, memory_gb=None, **where).memory == 85_094_825_984
    assert machine(name=None, memory_gb=40, **where).memory == 40e9
    assert machine(name="H100", memory_gb=None, **where).memory == 80e9


def test_every_card_is_found_by_its_own_name():
    assert all(find_card(name) is card for name, card in CARDS.items())
    assert CARDS["RTX 4090"].peak == 165.2e12  # not the 330 of sums in fp16, nor the 661 of sparse ones
