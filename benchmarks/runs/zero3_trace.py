"""What ZeRO-3 gathers, and whether ahead: `python -m benchmarks.runs.zero3_trace` -> results/zero3_trace.json.

Short trainings of the tiny Wan on two gloo ranks, each as it is and without what makes the difference: one trace for
each kind of forward, gathers in bf16. Counts and bytes do not hang on the machine; losses are equal to the last bit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pgdpo.evaluation.evaluate import machine, versions
from tests.engine import gathers
from tests.ranks import Ranks, Zygote
from tests.worlds import losses, save_tiny_wan, toy_world

from ..report import RESULTS

STEPS = [
    *("train.steps=6", "train.zero_stage=3", "train.micro_batch_groups=1"),  # two micro-batches a rank
    "train.deepspeed.zero_optimization.stage3_param_persistence_threshold=0",  # nothing is too small to be sharded
]
FULL = ["model.adapter=null", "train.learning_rate=1e-5", "train.precision=bf16"]
CASES = {
    "adapter": [],
    "adapter, whole batch at once": ["train.micro_batch_groups=2"],
    "adapter, checkpointed blocks": ["model.gradient_checkpointing=full"],
    "adapter, chosen and rejected apart": ["train.group_batching=split"],
    "adapter that the run starts from": ["model.adapter.reference=init"],
    "frozen": ["train.reference=frozen"],
    "ema": ["train.reference=ema"],
    "all weights, frozen": FULL,
    "all weights, ema": [*FULL, "train.reference=ema"],
}


def main() -> None:
    zygote = Zygote()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = toy_world(folder, save_tiny_wan(folder / "model")) / "config.yaml"
        ranks = Ranks({False: zygote}, folder)
        start = ["train", str(config), "name=start", "train.steps=1", "train.learning_rate=1e-2"]
        ranks.run(start, ["export", str(config), "name=start"])
        CASES["adapter that the run starts from"].append(f"model.adapter.init={folder / 'out/start/export'}")
        found = {}
        for case, overrides in CASES.items():
            left_out = "gather_in_bf16" if case.startswith("all weights") else "keep_traces_apart"
            words = ["train", str(config), *STEPS, *overrides]
            commands = {
                "before": [*words, "name=before", "--restart"],
                "after": [*words, "name=after", "--restart"],
            }
            counts, _ = ranks.call(gathers.count, commands, {"before": left_out}, timeout=600)
            equal = losses(folder / "out", "before") == losses(folder / "out", "after")
            found[case] = {"without": left_out, **counts, "losses_equal": equal}
            print(case, json.dumps(found[case]))
    zygote.close()
    about = {"machine": machine(), "versions": versions(), "settings": STEPS}
    file = RESULTS / "zero3_trace.json"
    file.write_text(json.dumps({**about, "cases": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
