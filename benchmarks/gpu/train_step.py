"""Whole training steps, the last stage of `python -m benchmarks.gpu`.

    a      what public trainers do: eager diffusers, a second copy as the reference, chosen and rejected one after the
           other, every block recomputed
    b      this trainer, the adapter switched off as the reference, every block recomputed
    c      b with the reference's errors computed beforehand
    d      c with fused ops, attention's outputs kept, compiled blocks
    e      a LoRA step of the 14B model, as b
    f      b with fused ops, nothing compiled

a to d and f train a LoRA on the architecture of Wan-1.3B, random weights, one pair a step, 480p x 81 frames, on clips
of noise that go through `pgdpo prepare`. For all but a the plan's peak memory stands beside the measured one. Each
variant has a process of its own. With the stub driver the same flow runs on a tiny model, and its times say nothing.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from .driver import driver

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
    "f": ("1.3b", [FULL, "model.kernels=triton"]),
}
TINY_CHANGES = {
    "model.kernels=triton": "model.kernels=eager",
    "model.compile=inductor": "model.compile=aot_eager",
}
SIZES = {"full": (81, 480, 832), "tiny": (5, 32, 32)}  # frames, height, width


def make_worlds(folder: str, emit: Callable[..., dict]) -> None:
    """What the variants train on, in a folder that they share."""
    tiny = driver().stub
    architectures = ["tiny"] if tiny else sorted({name for name, _ in VARIANTS.values()})
    make_world(Path(folder), SIZES["tiny" if tiny else "full"], architectures)
    emit("part", size=SIZES["tiny" if tiny else "full"])  # never ok: a run that goes on makes them anew


def run_variant(variant: str, folder: str, emit: Callable[..., dict]) -> None:
    """A row `part` for each step as it is done, then `ok` with their medians and the plan's memory."""
    emit("ok", **measure(variant, Path(folder), driver().stub, lambda row: emit("part", **row)))


def make_world(folder: Path, size: tuple[int, int, int], architectures: list[str]) -> None:
    """Two pairs of noise clips, prepared, and for each architecture a pipeline folder and a configuration.

    The pipelines' VAE and text encoder are tiny ones of the real classes, with the real latents' and embeddings' shape.
    """
    from pgdpo.cli import app
    from pgdpo.video import write_video

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
            "output_dir": str(folder / "out"),  # they share what is prepared
            "data": {
                "train": str(folder / "train.jsonl"),
                "num_frames": frames,
                "height": height,
                "width": width,
            },
            "model": {"path": str(folder / name), "random_init": True, "adapter": {"rank": 64, "alpha": 64}},
            "objective": {"name": "pg_dpo", "beta": 500},
            "train": {
                "steps": STEPS,
                "global_batch_groups": 1,
                "cached_draws": STEPS // 2,
                "warmup_steps": 0,
            },
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


def measure(variant: str, folder: Path, tiny: bool, done: Callable[[dict], None]) -> dict:
    """One variant in this process: medians of the steps after the first, peak memory, and the plan's.

    Args:
        folder: of `make_worlds`.
        done: called with what each step measured.
    """
    from pgdpo.config.read import load_config
    from pgdpo.planning.hardware import machine as machine_of
    from pgdpo.planning.plan import Planner

    architecture, overrides = VARIANTS[variant]
    if tiny:
        architecture, overrides = "tiny", [TINY_CHANGES.get(item, item) for item in overrides]
    config = load_config(folder / f"{architecture}.yaml", [f"name={variant}", *overrides])
    rows = (public_trainer if variant == "a" else this_trainer)(config, torch.device(driver().name), done)
    out = {"architecture": architecture, "settings": overrides} | summary(rows)
    if variant != "a":
        on = machine_of(gpus=1, nodes=1, name=None, memory_gb=80, mfu=0.35, disk_gb_per_s=1.0)
        out["planned_peak"] = Planner(config).plan(config, on).memory.peak
        out["planned_of_measured"] = out["planned_peak"] / out["peak_memory"]
    return out


def summary(rows: list[dict]) -> dict:
    """Of the rows of a variant's steps, the first of which warms up."""
    out = {
        name: statistics.median(row[name] for row in rows[1:] or rows)
        for name in ("seconds", "pairs_per_second", "tokens_per_second")
    }
    return out | {
        "mfu": rows[-1]["mfu"],
        "peak_memory": rows[-1]["peak_memory"],
        "losses": [row["loss"] for row in rows],
    }


@contextlib.contextmanager
def watched(path: Path, done: Callable[[dict], None]) -> Iterator[None]:
    """Call `done` with each line that another thread of this process appends to a JSONL file."""
    over, told = threading.Event(), 0

    def tell() -> None:
        nonlocal told
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        for line in lines[told:]:
            done(json.loads(line))
        told = len(lines)

    def follow() -> None:
        while not over.wait(0.5):
            tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()


@contextlib.contextmanager
def weights_drawn_on(device: torch.device) -> Iterator[None]:
    """Random weights alone: as the default device of everything, a GPU would get the data loaders' tensors too."""
    from pgdpo.models.family import Family

    load = Family.load_transformer

    def on_device(*arguments, **options):
        with device:
            return load(*arguments, **options)

    with unittest.mock.patch.object(Family, "load_transformer", on_device):
        yield


def this_trainer(config, device: torch.device, done: Callable[[dict], None]) -> list[dict]:
    """`pgdpo train`; its own metrics. The weights are drawn on the device, where 14B are drawn in seconds."""
    from pgdpo.training.reference_errors import compute_errors
    from pgdpo.training.trainer import Trainer

    with weights_drawn_on(device):
        if config.reference_mode == "cached":
            compute_errors(config)
        trainer = Trainer(config)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rows: list[dict] = []
    names = ("step", "loss", "seconds", "pairs_per_second", "tokens_per_second", "mfu", "peak_memory")

    def told(row: dict) -> None:
        rows.append({name: row[name] for name in names})
        done(rows[-1])

    (config.run_dir / "metrics.jsonl").unlink(missing_ok=True)
    with watched(config.run_dir / "metrics.jsonl", told):
        trainer.train(restart=True)
    return rows


def public_trainer(config, device: torch.device, done: Callable[[dict], None]) -> list[dict]:
    """Diffusion-DPO as it stands in public trainers, in plain diffusers, peft and torch."""
    from pgdpo.data.visits.loading import collate
    from pgdpo.diffusion.streams import elements
    from pgdpo.models import open_family
    from pgdpo.models.adapters.adapter import add_adapter
    from pgdpo.planning.costs.flops import SampleFlops, utilisation
    from pgdpo.training.metrics import peak_memory
    from pgdpo.training.noising import draw_sample
    from pgdpo.training.opening import open_pairs

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
    counted = SampleFlops(family, config, max(data.stream_shapes, key=elements))
    flops = 2 * counted.model(config, reference_runs=True)
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
                "step": step + 1,
                "loss": value,
                "seconds": seconds,
                "pairs_per_second": 1 / seconds,
                "tokens_per_second": 2 * family.tokens(data.latent_shape) / seconds,
                "mfu": utilisation(flops / seconds, device, 1),
                "peak_memory": peak_memory(device),
            }
        )
        done(rows[-1])
    return rows
