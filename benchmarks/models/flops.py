"""FLOPs that a plan names against those that operators have: `python -m benchmarks.models.flops` -> results/flops.json.

For each family, with a LoRA and with all weights, and each way of checkpointing, one sample of the shipped
configuration goes forward and backward through the whole model on the meta device, block by block and checkpointed as
in training. Attention is the fused operator there, whose backward has the four products that a gradient needs. The plan
counts shorter models, attention as separate products, and what is computed again by a difference. Beside them stands
what the plan says of evaluating a fully trained 14B.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pgdpo.config import Config
from pgdpo.config.read import load_config
from pgdpo.engine.memory import save_memory
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.planning.costs.flops import ATTENTION, SampleFlops
from pgdpo.planning.costs.meta import meta_policy
from pgdpo.planning.hardware import machine as planned_machine
from pgdpo.planning.plan import Planner
from pgdpo.planning.published import open_to_plan

from ..report import RESULTS

FILE = RESULTS / "flops.json"
MODELS = ("wan21_14b", "hunyuan_video", "cogvideox_5b", "ltx_video", "quickstart")
WEIGHTS = {"lora": [], "full": ["model.adapter=null"]}
CHECKPOINTING = ("none", "selective", "full")

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_flops(query, key, *_, **__) -> int:
    """Two products, of queries with keys and of weights with values; arguments are shapes `[N, heads, tokens, D]`."""
    samples, heads, rows, width = query
    return 4 * samples * heads * rows * key[2] * width


def attention_backward_flops(gradient, query, key, *_, **__) -> int:
    """Four: that a fused kernel makes the weights once more is no model FLOP."""
    return 2 * attention_flops(query, key)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """torch's attention as one operator, on the meta device too."""
    whole = functional.scaled_dot_product_attention

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        return FUSED(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = whole


def counted(config: Config, checkpointing: str) -> dict[str, Counter[str]]:
    """FLOPs of the whole model's `forward` and `backward`, by operator."""
    family, _ = open_to_plan(config.model)
    shape = family.latent_shape(*config.data.sizes[0])
    transformer = meta_policy(family, config, dtype=torch.float32)
    how = {"gradient_checkpointing": checkpointing, "compile": "none", "attention": "native"}
    save_memory(transformer, config.model.model_copy(update=how))
    mapping = {FUSED: attention_flops, FUSED_BACKWARD: attention_backward_flops}
    counters = [FlopCounterMode(display=False, custom_mapping=mapping) for _ in range(2)]
    with torch.device("meta"), attention_backend("native"), fused_attention():
        with counters[0]:
            inputs = torch.empty(1, *shape), torch.empty(1), family.example_conditioning(1, shape)
            prediction = family.predict(transformer, *inputs)
        with counters[1]:
            prediction.float().square().mean().backward()
    found = [Counter({str(op): n for op, n in each.get_flop_counts()["Global"].items()}) for each in counters]
    return dict(zip(("forward", "backward"), found, strict=True))


def by_kind(operators: Counter[str]) -> dict[str, int]:
    """Attention, and products with weights."""
    attention = sum(n for op, n in operators.items() if op == ATTENTION or "dot_product" in op)
    return {"attention": attention, "weights": operators.total() - attention}


def compare(config: Config, plan: SampleFlops, checkpointing: str) -> dict:
    """One row: both counts, and the largest relative difference of any part."""
    found = counted(config, checkpointing)
    again = Counter() if checkpointing == "none" else Counter(plan.policy.again)
    if checkpointing == "selective":
        del again[ATTENTION]
    told = {"forward": plan.policy.forward, "backward": plan.policy.backward + again}
    parts = {
        way: {"operators": by_kind(found[way]), "plan": by_kind(told[way])} for way in ("forward", "backward")
    }
    difference = max(
        abs(part["plan"][kind] - n) / max(1, n)
        for part in parts.values()
        for kind, n in part["operators"].items()
    )
    return {
        **parts,
        "operators": {way: dict(sorted(found[way].items())) for way in found},
        "difference": difference,
    }


def evaluation_of_14b() -> dict:
    """What the plan says of `pgdpo evaluate` on eight GPUs of 80 GB, all of 14B weights trained."""
    config = load_config("wan21_14b.yaml", ["model.adapter=null"])
    on = planned_machine(gpus=8, nodes=1, name="H100", memory_gb=80, mfu=0.35, disk_gb_per_s=1.0)
    planner, found = Planner(config), {}
    for stage in (2, 3):
        staged = load_config("wan21_14b.yaml", ["model.adapter=null", f"train.zero_stage={stage}"])
        plan = planner.plan(staged, on).as_json()
        found[f"zero_stage {stage}"] = plan["evaluation"] | {"usable": on.usable}
    return found


def main() -> None:
    rows: dict[str, dict] = {}
    for name in MODELS:
        for weights, changes in WEIGHTS.items():
            config = load_config(f"{name}.yaml", changes)
            family, _ = open_to_plan(config.model)
            plan = SampleFlops(family, config, family.stream_shapes(*config.data.sizes[0]))
            for checkpointing in CHECKPOINTING:
                row = rows[f"{name}, {weights}, {checkpointing}"] = compare(config, plan, checkpointing)
                print(f"{name}, {weights}, {checkpointing}: {row['difference']:.1e}", flush=True)
    results = {
        "command": "python -m benchmarks.models.flops",
        "machine": machine(),
        "versions": versions(),
        "largest_difference": max(row["difference"] for row in rows.values()),
        "rows": rows,
        "evaluation of Wan-14B, all weights trained, on 8 x 80 GB": evaluation_of_14b(),
    }
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
