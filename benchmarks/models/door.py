"""What training tells each transformer beside what its own pipeline tells it, and what each difference was worth.

`python -m benchmarks.models.door` prints the table and writes benchmarks/results/door.json. The calls are recorded
from tiny pipelines of the real classes (`tests/models/door.py`); the embedders have the published widths and random
weights."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault(
    "PGDPO_KERNELS_BACKEND", "eager"
)  # noising in Triton's interpreter takes most of the time

import torch

from pgdpo.models.families.wan import WanSettings
from pgdpo.models.weights.kept import hold_in
from pgdpo.planning.published import published
from tests.models.door import DIFFERENCES, Door, differences
from tests.models.families import KINDS

from ..report import RESULTS, machine, write

WAN = WanSettings(path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def table(root: Path) -> dict[str, dict]:
    """Mode and dtype -> its arguments by kind of difference, and how far the answers are from the pipeline's."""
    found = {}
    for name, kind in KINDS.items():
        folder = kind.save(root / name)
        for precision in ("fp32", "bf16"):
            door = Door(kind, folder, precision)
            kinds, off, steps = {}, 0.0, 0
            for ours, theirs, answer, their_answer in door.calls():
                for argument, kind in differences(door.transformer, ours, theirs).items():
                    kinds.setdefault(kind, set()).add(argument)
                off, steps = max(off, relative(answer, their_answer)), steps + 1
            found[f"{name} {precision}"] = {
                "steps": steps,
                **{kind: sorted(names) for kind, names in kinds.items()},
                "answer off by": off,
                "answer off by, told as before": told_as_before(door),
            }
    return found


@torch.no_grad()
def told_as_before(door: Door) -> dict[str, float]:
    """What each number, told as before, moves the transformer's answers by; the most of all steps."""
    moved: dict[str, float] = {}
    levels = [level for step, level in enumerate(door.levels()) if door.asked(step)]
    for (ours, *_), sigma in zip(door.calls(), levels, strict=True):
        given = {name: value for name, value in ours.items() if name != "rope"}
        answer = door.forward_call(given)
        for argument, value in unrounded(door, given, sigma).items():
            off = relative(door.forward_call({**given, argument: value}), answer)
            moved[argument] = max(moved.get(argument, 0.0), off)
    return moved


def unrounded(door: Door, given: dict, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
    """The arguments that were told without the pipeline's rounding."""
    exact = {}
    if door.family.told_rounded:
        told = given["timestep"]
        exact["timestep"] = torch.where(told == 0, 0.0, float(sigma) * 1000.0)  # 0: an image that is given
    if "guidance" in given:
        exact["guidance"] = torch.full_like(given["guidance"].float(), door.family.guidance * 1000)
    return exact


@torch.no_grad()
def time_embedder() -> dict[str, float]:
    """Wan 1.3B's time embedding at all timesteps, off float64 by: under autocast, kept in fp32, in a bf16 pipeline."""
    torch.manual_seed(0)
    family = published(WAN)
    model = hold_in(family.from_architecture({**family.architecture(), "num_layers": 0}), torch.bfloat16)
    embedder, project = model.condition_embedder.time_embedder, model.condition_embedder.timesteps_proj
    steps = project(torch.arange(1000))
    exact = type(embedder)(steps.shape[1], embedder.linear_1.out_features).double()
    exact.load_state_dict(embedder.state_dict())
    truth = exact(steps.double())
    pipeline = embedder(steps).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        before, now = type(embedder).forward(embedder, steps), embedder(steps)
    return {
        "before, under autocast": relative(before, truth),
        "now, in fp32": relative(now, truth),
        "now, handed on in bf16": relative(now.to(torch.bfloat16), truth),
        "a bf16 pipeline's": relative(pipeline, truth),
        "bits differ from the pipeline's": int((now.to(torch.bfloat16) != pipeline).sum()),
    }


def guidance() -> dict[str, float]:
    """HunyuanVideo's embedding of guidance 6, told as 6000 and as a bf16 pipeline tells it."""
    from diffusers.models.embeddings import Timesteps

    rounded = torch.tensor(6.0, dtype=torch.bfloat16) * 1000.0
    told = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(
        torch.tensor([6000.0, float(rounded)])
    )
    cosine = torch.nn.functional.cosine_similarity(told[0], told[1], dim=0)
    return {
        "before": 6000.0,
        "now and in the pipeline": float(rounded),
        "cosine of the embeddings": float(cosine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "door.json", help="JSON file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        modes = table(Path(folder))
    for name, row in modes.items():
        print(name)
        for key, value in row.items():
            print(f"  {key:32} {value}")
    result = {
        "machine": machine(),
        "kinds": DIFFERENCES,
        "modes": modes,
        "wan's time embedding, off float64 by": time_embedder(),
        "hunyuan_video's guidance": guidance(),
    }
    print(result["wan's time embedding, off float64 by"], result["hunyuan_video's guidance"], sep="\n")
    print(write(result, "door", arguments.out))


if __name__ == "__main__":
    main()
