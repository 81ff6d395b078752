"""Small real worlds for tests: tiny Wan folders on disk, rendered toy pairs, configurations, launchers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


def save_tiny_wan(folder: Path, *, channels: int = 48, text_dim: int = 64, layers: int = 2) -> Path:
    """transformer/ and scheduler/ of a Wan pipeline with one-digit layers and random weights."""
    from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_dim,
        freq_dim=16,
        ffn_dim=48,
        num_layers=layers,
        rope_max_seq_len=32,
    ).save_pretrained(folder / "transformer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    ).save_pretrained(folder / "scheduler")
    return folder


def toy_world(folder: Path, tiny_wan: Path) -> Path:
    """`folder/out/{toy,prepared}` with 12 training and 4 held-out pairs of 4 frames at 16x16 pixels."""
    (folder / "tiny_wan").symlink_to(tiny_wan)
    config = write_config(folder / "config.yaml", folder / "out", folder / "tiny_wan")
    run_pgdpo("prepare", config)
    return folder


def share_pairs(folder: Path, world: Path) -> Path:
    """`folder/out` with links to the toy and prepared pairs of `world`."""
    output = folder / "out"
    output.mkdir()
    for shared in ("prepared", "toy"):
        (output / shared).symlink_to(world / "out" / shared)
    return output


def write_config(path: Path, output: Path, model_path: Path, /, **sections: dict) -> Path:
    """A small valid configuration; `sections` are merged into its sections (a dict) or replace them."""
    import yaml  # here: the kernels' tests run where it is not installed

    config = {
        "output_dir": str(output),
        "data": {
            "train": "toy",
            "held_out": "toy",
            "toy": {"train_pairs": 12, "held_out_pairs": 4},
            "num_frames": 4,
            "height": 16,
            "width": 16,
            "latent_dtype": "float32",
            "pairs_per_shard": 5,
        },
        "model": {
            "family": "wan",
            "path": str(model_path),
            "encoders": "toy",
            "adapter": {"rank": 4, "alpha": 4, "target_modules": ["to_q", "to_v"]},
        },
        "objective": {"name": "dpo", "beta": 500},
        "train": {
            "steps": 4,
            "global_batch_groups": 4,
            "micro_batch_groups": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "checkpoint_every": 2,
        },
        "evaluate": {
            "reward": "toy",
            "num_prompts": 2,
            "sampling_steps": 2,
            "guidance_scale": 2.0,
            "draws_per_pair": 2,
            "batch": 4,
            "fps": 8,
        },
    }
    for name, section in sections.items():
        if isinstance(section, dict) and name != "objective":
            config[name] = {**config[name], **section}
        else:
            config[name] = section
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def change_pair(folder: Path, pair: str, change) -> None:
    """`change(tensors)` one prepared pair's tensors by name; all hashes are made to fit, as if the encoder wrote it."""
    from safetensors.torch import load_file, save_file

    from pgdpo.data.shards import tensors_sha256
    from pgdpo.files.atomic import sha256_of

    index = json.loads((folder / "index.json").read_text())
    row = next(row for row in index["pairs"] if row["id"] == pair)
    entry = index["shards"][row["shard"]]
    tensors = load_file(folder / entry["file"])
    prefix = f"{row['key']}."
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    change(own)
    save_file({**tensors, **{prefix + name: tensor for name, tensor in own.items()}}, folder / entry["file"])
    row["sha256"] = tensors_sha256(own)
    entry["sha256"] = sha256_of(folder / entry["file"])
    entry["bytes"] = (folder / entry["file"]).stat().st_size
    (folder / "index.json").write_text(json.dumps(index))


def read_manifest(path: Path, *, ties: str = "keep", media_root: Path | None = None, **options) -> list:
    """The rows of one manifest, as `prepare` reads them."""
    from pgdpo.config import DataConfig
    from pgdpo.data.sources import read_rows

    return read_rows(DataConfig(train=str(path), ties=ties, media_root=media_root), "train", **options)


def run_pgdpo(*arguments: object) -> None:
    """A command in this process; errors are raised, not printed."""
    from pgdpo.cli import app

    app([str(argument) for argument in arguments], standalone_mode=False)


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """For trainings that are not about the kernels: in Triton's interpreter these take most of the time."""
    key = "PGDPO_KERNELS_BACKEND"
    before = os.environ.get(key)
    if not torch.cuda.is_available():
        os.environ[key] = "eager"
    try:
        yield
    finally:
        os.environ.pop(key, None)
        if before is not None:
            os.environ[key] = before


def copy_beside(run: Path, name: str) -> Path:
    """A copy of a run, beside it, for a test that changes it."""
    return shutil.copytree(run, run.with_name(f"{run.name}-{name}"))


def launch(*arguments: object) -> subprocess.CompletedProcess:
    """`python -m pgdpo ...` in a process of its own, without Triton's interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "pgdpo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"},
    )


def stored(run_dir: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    from safetensors.torch import load_file

    from pgdpo.checkpoints.published import checkpoints_of

    files = checkpoints_of(run_dir)[-1].glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def metrics(output: Path, run: str) -> list[dict]:
    lines = (output / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(output: Path, run: str) -> list[float]:
    return [row["loss"] for row in metrics(output, run)]
