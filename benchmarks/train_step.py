"""Whole training steps: `python -m benchmarks.train_step`. One command, within ten minutes on a GPU.

    a      what public trainers do: eager diffusers, a second copy as the reference, chosen and rejected one after the
           other, every block recomputed
    b      this trainer, the adapter switched off as the reference, every block recomputed
    c      b with the reference's errors computed beforehand
    d      c with fused ops, attention's outputs kept, compiled blocks
    e      a LoRA step of the 14B model, as b

a to d train a LoRA on the architecture of Wan-1.3B, random weights, one pair a step, 480p x 81 frames, on clips of
noise that go through `pgdpo prepare`. For b to e the plan's peak memory stands beside the measured one. Each variant
has a process of its own. Leaves benchmarks/results/train-step-<device>-<date>.json. Without a GPU, or with --tiny, the
same flow runs on a tiny model in this process, and its times say nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from .report import machine, write

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4  # the first warms up
WAN = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
}
TINY = WAN | {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": 32,
    "ffn_dim": 48,
    "num_layers": 4,
}
ARCHITECTURES = {
    "1.3b": WAN | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": WAN | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "tiny": TINY,
}
FULL, CACHED = "model.gradient_checkpointing=full", "train.reference=cached"
VARIANTS = {
    "a": ("1.3b", [FULL, "train.reference=frozen"]),
    "b": ("1.3b", [FULL]),
    "c": ("1.3b", [FULL, CACHED]),
    "d": (
        "1.3b",
        [CACHED, "model.gradient_checkpointing=selective", "model.kernels=triton", "model.compile=inductor"],
    ),
    "e": ("14b", [FULL, "train.steps=2"]),
}
TINY_CHANGES = {
    "model.kernels=triton": "model.kernels=eager",
    "model.compile=inductor": "model.compile=aot_eager",
}
SIZES = {"full": (81, 480, 832), "tiny": (5, 32, 32)}  # frames, height, width


def make_world(folder: Path, size: tuple[int, int, int], architectures: list[str]) -> None:
    """Two pairs of noise clips, prepared, and for each architecture a pipeline folder and a configuration.

    The pipelines' VAE and text encoder are tiny ones of the real classes, with the real latents' and embeddings' shape.
    """
    from pgdpo.cli import app
    from pgdpo.data.video import write_video

    frames, height, width = size
    generator = np.random.default_rng(0)
    for name in ("0w", "0l", "1w", "1l"):
        coarse = generator.integers(0, 255, (frames, height // 8, width // 8, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", coarse.repeat(8, 1).repeat(8, 2), fps=16)
    rows = [
        {"id": str(i), "prompt": "a red circle moving left", "chosen": f"{i}w.mp4", "rejected": f"{i}l.mp4"}
        for i in range(2)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in architectures:
        save_pipeline(folder / name, ARCHITECTURES[name])
        config = {
            "output_dir": str(folder / f"out-{name}"),
            "data": {
                "train": str(folder / "train.jsonl"),
                "num_frames": frames,
                "height": height,
                "width": width,
            },
            "model": {"path": str(folder / name), "random_init": True, "adapter": {"rank": 64, "alpha": 64}},
            "objective": {"name": "pg_dpo", "beta": 500},
            "train": {"steps": STEPS, "global_batch_pairs": 1, "cached_draws": STEPS // 2, "warmup_steps": 0},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        app(["prepare", str(folder / f"{name}.yaml")], standalone_mode=False)


def save_pipeline(folder: Path, architecture: dict) -> None:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from tests.models.tiny_pipelines import WORDS, tokenizer

    channels, width = architecture["in_channels"], architecture["text_dim"]
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
        )
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    WanPipeline(tokenizer(), text, vae, scheduler).save_pretrained(folder)
    with torch.device("meta"):
        WanTransformer3DModel(**architecture).save_config(folder / "transformer")


def measure(variant: str, folder: Path, tiny: bool) -> dict:
    """One variant in this process: medians of the steps after the first, peak memory, and the plan's."""
    from pgdpo.config import load_config
    from pgdpo.planning.hardware import machine as machine_of
    from pgdpo.planning.plan import Planner

    architecture, overrides = VARIANTS[variant]
    if tiny:
        architecture, overrides = "tiny", [TINY_CHANGES.get(item, item) for item in overrides]
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    config = load_config(folder / f"{architecture}.yaml", [f"name={variant}", *overrides])
    rows = (public_trainer if variant == "a" else this_trainer)(config, device)
    out = {
        name: statistics.median(row[name] for row in rows[1:])
        for name in ("seconds", "pairs_per_second", "tokens_per_second")
    }
    out |= {
        "mfu": rows[-1]["mfu"],
        "peak_memory": rows[-1]["peak_memory"],
        "losses": [row["loss"] for row in rows],
    }
    if variant != "a":
        on = machine_of(gpus=1, nodes=1, name=None, memory_gb=80, mfu=0.35, disk_gb_per_s=1.0)
        out["planned_peak"] = Planner(config).plan(config, on).memory.peak
        out["planned_of_measured"] = out["planned_peak"] / out["peak_memory"]
    return {"architecture": architecture, "settings": overrides, **out}


def this_trainer(config, device: torch.device) -> list[dict]:
    """`pgdpo train`; its own metrics. The weights are drawn on the device, where 14B are drawn in seconds."""
    from pgdpo.training.loop import Trainer
    from pgdpo.training.reference_errors import compute_errors

    with device:
        if config.reference_mode == "cached":
            compute_errors(config)
        trainer = Trainer(config)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer.train(restart=True)
    lines = (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def public_trainer(config, device: torch.device) -> list[dict]:
    """Diffusion-DPO as it stands in public trainers, in plain diffusers, peft and torch."""
    from pgdpo.data.prepared import collate
    from pgdpo.models import open_family
    from pgdpo.models.adapter import add_adapter
    from pgdpo.training.flops import forward_flops, pair_flops, utilisation
    from pgdpo.training.metrics import peak_memory
    from pgdpo.training.noising import draw_sample
    from pgdpo.training.policy import open_pairs

    family, data = open_family(config.model), open_pairs(config, "train")
    with device:
        policy, reference = (
            family.load_transformer(dtype=torch.bfloat16, random_init_seed=0) for _ in range(2)
        )
        add_adapter(policy, config.model.adapter, 0)
    policy.enable_gradient_checkpointing()
    policy.train()
    reference.requires_grad_(False)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.train.learning_rate, fused=device.type == "cuda")
    flops = pair_flops(forward_flops(family, data.latent_shape), adapter=True, reference=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def errors(model, sample):
        sides = []
        for side in (0, 1):
            conditioning = {name: value.chunk(2)[side] for name, value in sample.conditioning.items()}
            pred = family.predict(model, sample.noisy.chunk(2)[side], sample.sigma, conditioning)
            sides.append((pred.float() - sample.target.chunk(2)[side]).square().flatten(1).mean(1))
        return sides

    rows = []
    for step in range(config.train.steps):
        started = time.perf_counter()
        sample = draw_sample(collate([data[step % len(data), step // len(data)]]), config, family, device)
        with torch.autocast(device.type, torch.bfloat16):
            chosen, rejected = errors(policy, sample)
            with torch.no_grad():
                ref_chosen, ref_rejected = errors(reference, sample)
        margin = (ref_chosen - chosen) - (ref_rejected - rejected)
        loss = -torch.nn.functional.logsigmoid(config.objective["beta"] / 2 * margin).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()  # waits for the device
        seconds = time.perf_counter() - started
        rows.append(
            {
                "loss": value,
                "seconds": seconds,
                "pairs_per_second": 1 / seconds,
                "tokens_per_second": 2 * family.tokens(data.latent_shape) / seconds,
                "mfu": utilisation(flops / seconds, device, 1),
                "peak_memory": peak_memory(device),
            }
        )
    return rows


def in_a_process(variant: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.train_step", "--variant", variant, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
    return json.loads((folder / f"{variant}.json").read_text(encoding="utf-8"))


def compare(variants: dict[str, dict]) -> dict:
    """Speed and memory of b, c, d relative to a."""
    base = variants.get("a", {})
    return {
        name: {
            "times_a": found["pairs_per_second"] / base["pairs_per_second"],
            "memory_of_a": found["peak_memory"] / base["peak_memory"],
        }
        for name, found in variants.items()
        if name in "bcd" and "seconds" in found and "seconds" in base
    }


def table(variants: dict[str, dict]) -> str:
    lines = [
        f"{'':4}{'s a step':>10} {'pairs/s':>9} {'tokens/s':>10} {'MFU':>6} {'peak GB':>9} {'planned GB':>11}"
    ]
    for name, row in variants.items():
        if "seconds" not in row:
            lines.append(f"{name:4}{' '.join(row.get('failed', ['not run for lack of time']))[:90]}")
            continue
        mfu = f"{row['mfu']:.0%}" if row["mfu"] else "-"
        planned = f"{row['planned_peak'] / 1e9:.2f}" if "planned_peak" in row else "-"
        lines.append(
            f"{name:4}{row['seconds']:10.2f} {row['pairs_per_second']:9.3f} {row['tokens_per_second']:10.0f} {mfu:>6} "
            f"{row['peak_memory'] / 1e9:9.2f} {planned:>11}"
        )
    return "\n".join(lines)


def run(
    *, variants: str = "abcde", minutes: float = 9.0, tiny: bool = False, out: Path | None = None
) -> Path:
    """Measure, print, write. Returns the JSON file. No variant is started after `minutes`."""
    tiny = tiny or not torch.cuda.is_available()
    deadline = time.monotonic() + 60 * minutes
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="train-step-") as temporary:
        folder = Path(temporary)
        needed = ["tiny"] if tiny else sorted({VARIANTS[name][0] for name in variants})
        make_world(folder, SIZES["tiny" if tiny else "full"], needed)
        for name in variants:
            if time.monotonic() > deadline:
                found[name] = {}
                continue
            one = functools.partial(measure, tiny=True) if tiny else in_a_process
            found[name] = one(name, folder)
            print(table({name: found[name]}).splitlines()[-1], flush=True)
    result = {"machine": machine(), "size": SIZES["tiny" if tiny else "full"], "variants": found}
    result |= {"compared": compare(found), "times_mean_something": not tiny}
    path = write(result, "train-step", out)
    print(f"\n{table(found)}\n{path}")
    if tiny:
        print(
            "A tiny model without a GPU: this shows that every step runs. The times and memory say nothing."
        )
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="?", default="abcde", help="which to run, such as abc")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU; times say nothing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # one, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        found = measure(arguments.variant, arguments.folder, tiny=False)
        (arguments.folder / f"{arguments.variant}.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    run(variants=arguments.variants, minutes=arguments.minutes, tiny=arguments.tiny, out=arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
