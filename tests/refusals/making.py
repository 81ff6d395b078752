"""Small real inputs that a command refuses, each for reasons that `refusals.py` names; `pgdpo check` must say the same.

An input goes through a command as a user would give it, or, where that would need prepared pairs or a trained run of
the input's own, through the function of the command that refuses it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pgdpo.config import Config
from tests.checking.broken_inputs import write_clips
from tests.faults.inputs.test_clips import huge_avi, picture, without_frames
from tests.models.families import FAMILIES
from tests.video.odd_clips import Odd, write
from tests.worlds import run_pgdpo, share_pairs, write_config


@dataclass(frozen=True)
class Place:
    """Where an input is made: `config` shares the prepared pairs of the toy world, until it is given others."""

    folder: Path
    world: Path
    saved: Callable[..., Path]
    patch: pytest.MonkeyPatch

    @property
    def config(self) -> Path:
        file = self.folder / "config.yaml"
        if not file.exists():
            write_config(file, share_pairs(self.folder, self.world), self.world / "tiny_wan")
        return file

    def own_pairs(self, change: Callable[[dict], object]) -> str:
        """A copy of the prepared training pairs whose index is changed; the override that names it."""
        copy = self.folder / "copy"
        shutil.copytree(self.world / "out" / "prepared", copy)
        file = copy / "train" / "index.json"
        index = json.loads(file.read_text())
        change(index)
        file.write_text(json.dumps(index))
        return f"data.prepared={copy}"

    def model(self, save: Callable, **changes: dict) -> Path:
        """A copy of a saved pipeline, with changes to the JSON of its parts; `index` is model_index.json."""
        folder = self.folder / "model"
        shutil.copytree(self.saved(save), folder)
        for part, change in changes.items():
            names = ("config.json", "scheduler_config.json")
            files = (
                [folder / "model_index.json"] if part == "index" else [folder / part / name for name in names]
            )
            [file] = [file for file in files if file.exists()]
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
        return folder


@dataclass(frozen=True)
class Input:
    """`build` makes the files and returns overrides. `by`: the command, or a function of it that takes the Config."""

    by: str | Callable[[Config], object]
    build: Callable[[Place], list[str]]
    says: str = "error"  # what check makes of it: error, warning, or note (which leaves the exit code alone)
    config: str = ""  # the file that is named, where it is not the place's own


def given(*overrides: str) -> Callable[[Place], list[str]]:
    return lambda _: list(overrides)


def no_tracker(place: Place) -> list[str]:
    place.patch.setattr("pgdpo.training.trackers.importlib.util.find_spec", lambda name: None)
    return ["train.trackers=[wandb]"]


def no_interpreter(place: Place) -> list[str]:
    place.patch.delenv("TRITON_INTERPRET", raising=False)
    return ["model.kernels=triton"]


def no_libaio(place: Place) -> list[str]:
    place.patch.setattr("pgdpo.engine.engine.AsyncIOBuilder.is_compatible", lambda *_, **__: False)
    return [*NVME, f"train.nvme_path={place.folder}"]


def broken_reward(place: Place) -> list[str]:
    (place.folder / "broken_reward.py").write_text("raise RuntimeError('no licence')")
    place.patch.syspath_prepend(place.folder)
    place.patch.setattr("importlib.metadata.packages_distributions", lambda: {"broken_reward": ["broken"]})
    return ["evaluate.reward=broken_reward:score"]


def lora(tensors: dict, *overrides: str, metadata: dict | None = None) -> Callable[[Place], list[str]]:
    def build(place: Place) -> list[str]:
        file = place.folder / "lora.safetensors"
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata)
        return [f"model.adapter.init={file}", *overrides]

    return build


def fused_and_apart(place: Place) -> list[str]:
    """HunyuanVideo's original `qkv`, and beside it the `to_q` that is a part of it."""
    parts = {"double_blocks.0.img_attn_qkv": 96, "transformer_blocks.0.attn.to_q": 32}
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32) for name in parts}
    tensors |= {f"{name}.lora_B.weight": torch.ones(outputs, 2) for name, outputs in parts.items()}
    return [
        *pipeline(place.model(FAMILIES["hunyuan_video"].save)),
        "model.family=hunyuan_video",
        *lora(tensors)(place),
    ]


def broken_config(place: Place, file: str) -> list[str]:
    folder = place.model(FAMILIES["wan"].save)
    (folder / file).write_text("{")
    return pipeline(folder)


def others_margins(place: Place) -> list[str]:
    (place.folder / "margins.json").write_text(json.dumps({"margin": {"another": 1.0}}))
    return [f"data.order={{by: implicit_reward, file: {place.folder}/margins.json}}"]


def lora_folder(*names: str) -> Callable[[Place], list[str]]:
    def build(place: Place) -> list[str]:
        folder = place.folder / "loras"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"no safetensors")
        return [f"model.adapter.init={folder if len(names) != 1 else folder / names[0]}"]

    return build


def other_start(change: dict | None) -> Callable[[Place], list[str]]:
    def build(place: Place) -> list[str]:
        folder = place.folder / "start"
        shutil.copytree(place.world / "tiny_wan" / "transformer", folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        file.unlink() if change is None else file.write_text(json.dumps(config | change))
        return [f"model.transformer={folder}"]

    return build


def tensors(change: Callable[[dict], object] | None) -> Callable[[Place], list[str]]:
    """The tiny model with other weights than its config.json asks for, or none."""

    def build(place: Place) -> list[str]:
        folder = place.folder / "weights"
        shutil.copytree(place.world / "tiny_wan", folder)
        [file] = (folder / "transformer").glob("*.safetensors")
        found = load_file(file)
        file.unlink()
        if change is not None:
            change(found)
            save_file(found, file)
        return [f"model.path={folder}", "train.zero_stage=3"]

    return build


def bad_rows(place: Place) -> list[str]:
    """A manifest of clips with one thing wrong each; with data.on_bad_data: skip, prepare looks at all of them."""
    clips = place.folder / "clips"
    write_clips(clips)
    whole = (clips / "fast.mp4").read_bytes()
    for tenth in range(1, 10):
        place_of = len(whole) * tenth // 10
        (clips / f"cut{tenth}.mp4").write_bytes(whole[:place_of])
        (clips / f"hurt{tenth}.mp4").write_bytes(whole[:place_of] + bytes(40) + whole[place_of + 40 :])
    without_frames(clips / "none.mp4", clips / "0a.mp4")
    huge_avi(clips / "huge.avi", clips / "0a.mp4")
    sound_alone(clips / "sound.mp4")
    write(clips, Odd("linear", light="linear", rate=Fraction(8), frames=6))
    write(clips, Odd("slow", rate=Fraction(4), frames=6))
    (clips / "half.png").write_bytes(picture(16, 16, whole=True)[:50])
    wrong = {
        "wide": {"chosen": "wide"},
        "said": {"num_frames": 5},
        "hash": {"sha256_chosen": "0" * 64},
        "slow": {"chosen": "slow", "rejected": "slow"},
        "mask": {"mask": "wide"},
        "mask page": {"mask": "page.png"},
        **{name: {"chosen": name} for name in (*BAD, "linear", "page.png", "half.png")},
        **{f"{what}{n}": {"chosen": f"{what}{n}"} for what in ("cut", "hurt") for n in range(1, 10)},
    }
    return rows(place, [good_row(name) | change for name, change in wrong.items()])


def bad_groups(place: Place) -> list[str]:
    """As `bad_rows`, with one sample at fault in each."""
    write_clips(place.folder / "clips")
    samples = {
        "wide": [{"clip": "clips/wide.mp4"}, {"clip": "clips/0a.mp4"}],
        "short": [{"clip": "clips/0a.mp4"}, {"clip": "clips/0b.mp4"}, {"clip": "clips/short.mp4"}],
        "hash": [{"clip": "clips/0a.mp4", "sha256": "0" * 64}],
    }
    return rows(place, [{"id": name, "prompt": "red", "samples": each} for name, each in samples.items()])


BAD = ("short", "page", "empty", "sound", "none", "huge.avi")


def black_mask(place: Place) -> list[str]:
    from PIL import Image

    write_clips(place.folder / "clips")
    Image.new("L", (16, 16)).save(place.folder / "clips" / "black.png")
    return rows(place, [good_row("0") | {"mask": "black.png"}, good_row("1")])


def broken_picture(place: Place) -> list[str]:
    """A row whose picture is a web page, for an image-to-video model that has no need of a text encoder."""
    write_clips(place.folder / "clips")
    place.patch.setattr("pgdpo.toy.encoders.ToyEncoders.pictures", (0,))
    place.patch.setattr("pgdpo.toy.encoders.ToyEncoders.encode_images", None, raising=False)
    return rows(place, [good_row(name) | {"image": "page.png"} for name in ("0", "1")])


def remote(url: str, most: int = 1 << 30) -> Callable[[Place], list[str]]:
    """A clip behind a URL, where a megabyte is too much."""

    def build(place: Place) -> list[str]:
        import fsspec

        write_clips(place.folder / "clips")
        place.patch.setenv("PGDPO_CACHE", str(place.folder / "cache"))
        place.patch.setattr("pgdpo.files.locations.MAX_CLIP_BYTES", most)
        with fsspec.open("memory://refusals/large.mp4", "wb") as file:
            file.write((place.folder / "clips" / "0a.mp4").read_bytes())
        return rows(place, [good_row("0") | {"chosen": url}])

    return build


def good_row(name: str) -> dict:
    return {"id": name, "prompt": "a ball", "chosen": "0a", "rejected": "0b"}


def rows(place: Place, found: list[dict]) -> list[str]:
    """A manifest of these rows, whose clips stand without folder and ending."""
    for row in found:
        for key in row.keys() & {"chosen", "rejected", "mask", "image"}:
            if "://" not in row[key]:
                row[key] = f"clips/{row[key]}" + ("" if "." in row[key] else ".mp4")
    manifest = place.folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in found))
    return [
        f"data.train={manifest}",
        "data.held_out=null",
        f"output_dir={place.folder}/new",
        "data.on_bad_data=skip",
        "data.pairs_per_shard=100",
    ]


def sound_alone(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])


def no_bucket(place: Place) -> list[str]:
    write_clips(place.folder / "clips")
    return [*rows(place, [good_row("0")]), "data.buckets=[[5,16,64],[4,16,64]]"]


def too_many_spans(place: Place) -> list[str]:
    write_clips(place.folder / "clips")
    return [*rows(place, [good_row("0")]), "data.clip=segments:4"]


def many_bad_rows(place: Place) -> list[str]:
    write_clips(place.folder / "clips")
    return rows(place, [good_row(str(number)) | {"weight": -1} for number in range(40)])


def two_manifests(place: Place) -> list[str]:
    """Prepared, and a rule that leaves none of the second."""
    write_clips(place.folder / "clips")
    for name in "ab":
        overrides = rows(place, [good_row(f"{name}{number}") | {"source": name} for number in range(2)])
        (place.folder / "rows.jsonl").rename(place.folder / f"{name}.jsonl")
    listed = ",".join(f"{{manifest: {place.folder}/{name}.jsonl, share: 0.5}}" for name in "ab")
    overrides = [f"data.train=[{listed}]", *overrides[1:]]
    run_pgdpo("prepare", place.config, *overrides)
    return [*overrides, "data.select=[{by: source, sources: [a]}]"]


def curated(*overrides: str, **columns: object) -> Callable[[Place], list[str]]:
    """Two good rows with such columns that are not prepared yet."""

    def build(place: Place) -> list[str]:
        write_clips(place.folder / "clips")
        return [*rows(place, [good_row("0") | columns, good_row("1")]), *overrides]

    return build


def prepared_rows(*overrides: str, first: dict, second: dict) -> Callable[[Place], list[str]]:
    """Two rows with these columns, prepared."""

    def build(place: Place) -> list[str]:
        write_clips(place.folder / "clips")
        own = rows(place, [good_row("0") | first, good_row("1") | second])
        run_pgdpo("prepare", place.config, *own)
        return [*own, *overrides]

    return build


def no_hashes(index: dict) -> None:
    for row in index["pairs"]:
        del row["sha256_chosen"]


def damaged(change: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """Prepared pairs after `change(their folder)`."""

    def build(place: Place) -> list[str]:
        override = place.own_pairs(lambda index: None)
        change(place.folder / "copy" / "train")
        return [override]

    return build


def others_errors(place: Place) -> list[str]:
    from pgdpo.reference.store import create

    create(place.config.parent / "out" / "reference", {"reference weights": "another"})
    return CACHED


def broken_key(place: Place) -> list[str]:
    others_errors(place)
    [file] = (place.folder / "out" / "reference").rglob("key.json")
    file.write_text("{")
    return CACHED


def damaged_errors(place: Place) -> list[str]:
    run_pgdpo("reference", place.config, *CACHED)
    for file in (place.folder / "out" / "reference").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    return CACHED


def flipped(folder: Path) -> None:
    file = min(folder.glob("shard-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


NVME = ("train.zero_stage=3", "train.offload_optimizer=nvme")
CACHED = ["train.reference=cached", "train.cached_draws=1"]
FRESH = "output_dir=fresh"
Q = "blocks.0.attn1.to_q"
HALF = {f"{Q}.lora_A.weight": torch.ones(2, 32)}
WHOLE = HALF | {f"{Q}.lora_B.weight": torch.ones(32, 2)}


def pipeline(folder: Path) -> list[str]:
    return [FRESH, f"model.path={folder}", "model.encoders=pipeline", "evaluate.reward=null"]
