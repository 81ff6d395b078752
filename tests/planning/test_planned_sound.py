"""A plan of sound and picture together: LTX-2's FLOPs by its shapes alone, what autograd keeps, bytes of both."""

import json
from math import prod
from typing import NamedTuple

import pytest

from pgdpo.config.read import load_config
from pgdpo.models import open_family
from pgdpo.planning.costs.flops import SampleFlops
from pgdpo.planning.hardware import machine
from pgdpo.planning.plan import Planner
from pgdpo.planning.published import open_to_plan
from tests.models.families import LTX2, Kind
from tests.planning.test_planned_memory import really_saved
from tests.worlds import write_config

WORDS = 1024
FREQUENCIES = 256
MODULATED = 6  # rows of a block's table, by which time modulates it


class Cost(NamedTuple):
    """FLOPs, and of these what has no gradient by its input: the first layers of what comes in."""

    all: float
    first: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.all + other.all, self.first + other.first)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.all * times, self.first * times)


def linear(rows: int, width: int, out: int, *, first: bool = False) -> Cost:
    cost = 2.0 * rows * width * out
    return Cost(cost, cost if first else 0.0)


def attention(queries: int, keys: int, from_queries: int, from_keys: int, inner: int) -> Cost:
    """Four projections, of queries and back to their width, of keys and of values, and two products."""
    projected = linear(queries, from_queries, inner) + linear(queries, inner, from_queries)
    return projected + linear(keys, from_keys, inner) * 2 + Cost(4.0 * queries * keys * inner)


def embedded_time(rows: int, width: int, out: int) -> Cost:
    return (
        linear(rows, FREQUENCIES, width, first=True)
        + linear(rows, width, width)
        + linear(rows, width, out * width)
    )


def ltx2(config: dict, tokens: int, sounds: int, times: int) -> tuple[Cost, Cost]:
    """(all blocks, what stands around them) of LTX-2.0. `times`: timesteps of the picture's tokens, one or as many."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    narrow = config["audio_num_attention_heads"] * config["audio_attention_head_dim"]
    block = Cost(0.0)
    for rows, own in ((tokens, width), (sounds, narrow)):
        block += attention(rows, rows, own, own, own) + attention(rows, WORDS, own, own, own)
        block += linear(rows, own, 4 * own) + linear(rows, 4 * own, own)
    block += attention(tokens, sounds, width, narrow, narrow)
    block += attention(sounds, tokens, narrow, width, narrow)
    around = Cost(0.0)
    for rows, own, channels, stamps in (
        (tokens, width, config["in_channels"], times),
        (sounds, narrow, config["audio_in_channels"], 1),
    ):
        around += linear(rows, channels, own, first=True) + linear(rows, own, channels)
        around += linear(WORDS, config["caption_channels"], own, first=True) + linear(WORDS, own, own)
        around += embedded_time(stamps, own, MODULATED)
    # Across: the pipeline tells each stream the noise level of the other, one number.
    for own in (width, narrow):
        around += embedded_time(1, own, 4) + embedded_time(1, own, 1)
    return block * config["num_layers"], around


def opened(kind: Kind, folder, tmp_path, **keys):
    frames, height, width = kind.size
    model = (
        {"family": "ltx2", "path": str(folder), "encoders": "pipeline", "adapter": None} | kind.keys | keys
    )
    data = {"num_frames": frames, "height": height, "width": width}
    return load_config(write_config(tmp_path / "c.yaml", tmp_path, tmp_path, model=model, data=data))


@pytest.mark.parametrize("task", ["text_to_video", "image_to_video"])
def test_sound_and_picture_cost_what_their_shapes_say(task, saved, tmp_path):
    config = opened(LTX2, saved(LTX2.save), tmp_path, task=task)
    family = open_family(config.model)
    shapes = family.stream_shapes(*LTX2.size)
    found = SampleFlops(family, config, shapes).policy
    tokens, sounds = prod(shapes["video"][1:]), shapes["audio"][1]
    times = tokens if task == "image_to_video" else 1
    blocks, around = ltx2(family.architecture(), tokens, sounds, times)
    whole = blocks + around
    assert found.forward.total() == whole.all
    assert found.again.total() == blocks.all
    assert found.backward.total() == 2 * whole.all - whole.first


def test_the_published_model_costs_what_its_shapes_say(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = load_config("ltx2.yaml", ["model.adapter=null"])
    family, _ = open_to_plan(config.model)
    shapes = family.stream_shapes(*config.data.sizes[0])
    assert family.stream_tokens(shapes) == {"video": 16 * 16 * 24, "audio": 126}
    blocks, around = ltx2(family.architecture(), 6144, 126, 1)
    assert SampleFlops(family, config, shapes).policy.forward.total() == (blocks + around).all


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_what_autograd_keeps_of_both_is_planned(checkpointing, saved, tmp_path):
    config = opened(LTX2, saved(LTX2.save), tmp_path, gradient_checkpointing=checkpointing)
    planner = Planner(config)
    assert planner.traced(config, planner.traced_pass(2, cuda=False)).saved == really_saved(config)


def test_a_plan_names_the_sound_and_counts_its_bytes(saved, tmp_path):
    on = machine(gpus=2, nodes=1, name="H100", memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    plans = {}
    for audio in (True, False):
        config = opened(LTX2, saved(LTX2.save), tmp_path, audio=audio)
        planner = Planner(config)
        plans[audio] = json.loads(json.dumps(planner.plan(config, on).as_json()))
    both, alone = plans[True], plans[False]
    assert alone["streams"].keys() == {"video"} and both["streams"]["video"] == alone["streams"]["video"]
    sound = both["streams"]["audio"]
    (channels, length, bins), tokens = sound["shape"], sound["tokens"]
    assert tokens == length > 0
    assert both["step"]["tokens"] - alone["step"]["tokens"] == both["step"]["clips"] * tokens
    samples = 2 * both["disk"]["pairs"]
    assert both["disk"]["latents"] - alone["disk"]["latents"] == samples * channels * length * bins * 4
    assert both["memory"]["activations"] > alone["memory"]["activations"]
    assert both["step"]["flops"] > alone["step"]["flops"]
