"""A hundred and more broken configurations, manifests and clips, and what `pgdpo check` must say of each.

Run as a program (`python -m tests.checking.broken_inputs FOLDER`) it checks them all and writes FOLDER/found.json; it
imports no torch, and says so if anything did.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
MANIFEST = "rows.jsonl"
NAN = float("nan")


@dataclass(frozen=True)
class Broken:
    """One input. What must be said: `key`, the text of `value`, a part of what is `allowed`; and where."""

    name: str
    key: str
    value: str
    allowed: str
    keys: dict[str, Any] = field(default_factory=dict)  # changes to the configuration, by dotted key
    drop: str = ""  # a dotted key that is taken out of the configuration
    text: bytes | None = None  # the whole configuration
    arguments: tuple[str, ...] = ()  # overrides on the command line
    rows: Callable[[list[dict]], Any] | None = None  # changes the manifest's rows
    lines: bytes | None = None  # the whole manifest
    config: str = CONFIG  # what the command is given
    where: str = CONFIG  # the file that must be named, with a line or row if there is one

    @property
    def row(self) -> int | None:
        """The row at fault: the second, where rows were changed."""
        return 2 if self.rows is not None else None


def key(key: str, value: Any, allowed: str, shown: str | None = None) -> Broken:
    """A configuration with one wrong value."""
    return Broken(f"{key}: {value!r}", key, repr(value) if shown is None else shown, allowed, {key: value})


def row(key: str, value: Any, allowed: str, shown: str | None = None, **more: Any) -> Broken:
    """A manifest whose second row holds a wrong value."""

    def change(rows: list[dict]) -> None:
        rows[1][key] = value

    text = repr(value) if shown is None else shown
    return Broken(f"row {key}: {value!r}"[:70], key, text, allowed, rows=change, where=MANIFEST, **more)


def absent(name: str, at: str, allowed: str) -> Broken:
    """A configuration without a key."""
    return Broken(f"without {name}", at, "missing", allowed, drop=name)


def text(name: str, content: str | bytes, allowed: str, value: str = "", key: str = "") -> Broken:
    """A configuration of another text."""
    return Broken(name, key, value, allowed, text=content if isinstance(content, bytes) else content.encode())


def lines(name: str, content: str | bytes, key: str, value: str, allowed: str) -> Broken:
    """A manifest of another text."""
    content = content if isinstance(content, bytes) else content.encode()
    return Broken(name, key, value, allowed, lines=content, where=MANIFEST)


SEGMENT = {"start": 0, "end": 1, "preference": 1}
GOOD = '{"id": "0", "prompt": "p", "chosen": "clips/0a.mp4", "rejected": "clips/0b.mp4"}\n'
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)

NUMBERS = [
    key("train.steps", 0, "≥ 1"),
    key("train.steps", -5, "≥ 1"),
    key("train.steps", "many", "whole number"),
    key("train.steps", 1.5, "whole number"),
    key("train.steps", None, "whole number"),
    key("train.steps", True, "whole number"),
    key("train.steps", [1], "whole number"),
    key("train.learning_rate", 0, "> 0"),
    key("train.learning_rate", -1e-5, "> 0"),
    key("train.learning_rate", float("inf"), "> 0"),
    key("train.learning_rate", NAN, "> 0"),
    key("train.learning_rate", "fast", "a number"),
    key("train.max_grad_norm", 0, "> 0"),
    key("train.seed", -1, "≥ 0"),
    key("train.seed", 2**63, "<"),
    key("train.global_batch_groups", 0, "≥ 1"),
    key("train.global_batch_groups", 5, "4 or 6", "5"),
    key("train.micro_batch_groups", 0, "≥ 1"),
    key("train.checkpoint_every", 0, "≥ 1"),
    key("train.keep_checkpoints", 0, "≥ 1"),
    key("train.warmup_steps", -1, "≥ 0"),
    key("train.weight_decay", -0.1, "≥ 0"),
    key("train.adam_betas", 0.9, "[a number, a number]"),
    key("data.num_frames", 0, "≥ 1"),
    key("data.height", 4, "≥ 8"),
    key("data.width", "wide", "whole number"),
    key("data.pairs_per_shard", 0, "≥ 1"),
    key("data.caption_dropout", 1, "< 1"),
    key("data.caption_dropout", -0.1, "≥ 0"),
    key("data.workers", -1, "≥ 0"),
    key("data.segments", 0, "≥ 1"),
    key("model.adapter.rank", 0, "≥ 1"),
    key("model.adapter.rank", "sixteen", "whole number"),
    key("model.adapter.alpha", -1, "> 0"),
    key("diffusion.shift", 0, "> 0"),
    key("diffusion.logit_std", 0, "> 0"),
    key("diffusion.inversion_steps", 11, "≤ 10"),
    key("evaluate.guidance_scale", 0.5, "≥ 1"),
    key("evaluate.fps", 0, "> 0"),
    key("evaluate.num_prompts", -3, "≥ 1"),
]
CHOICES = [
    key("train.zero_stage", 4, "0, 1, 2, 3"),
    key("train.precision", "fp8", "bf16"),
    key("train.schedule", "cosin", "cosine"),
    key("train.reference", "adaptor", "adapter"),
    key("data.latent_dtype", "fp16", "float32, bfloat16"),
    key("data.ties", "skip", "drop, keep"),
    key("model.family", "sdxl", "wan"),
    key("model.encoders", "vae", "pipeline, toy"),
    key("model.kernels", "fast", "auto, triton, eager"),
    key("diffusion.timestep_sampling", "normal", "uniform, logit_normal"),
    key("evaluate.reward", 3, "text"),
    key("model.random_init", "maybe", "true or false"),
    key("model.gradient_checkpointing", True, "none, full, selective"),
    key("model.adapter", True, "target_modules"),
    key("model.adapter.target_modules", "to_q", "a list of text"),
    key("data.train", 5, "text"),
    key("data.train", [], "at least 1"),
    key("data.train", True, "text"),
    key("data.train", [{"manifest": "a", "share": 0.7}, {"manifest": "b", "share": 0.2}], "share", "0.9"),
    key("data.train", [{"manifest": "a", "share": 1}, {"manifest": "b"}], "share", "1 of 2"),
    key("data.train", [{"manifest": "a"}, {"manifest": "a"}], "share", "given once"),
    key("data.held_out", 5, "share"),
    key("data.held_out.share", 2, "> 0 and < 1"),
    key("data", "rows.jsonl", "num_frames"),
    key("output_dir", None, "a path"),
]
MANIFESTS_NAMED = [
    Broken("a split of the toy", "data.held_out", "toy", "manifest",
           {"data.train": "toy", "data.held_out": {"share": 0.5}}),
    Broken("a misspelt key of a manifest", "data.train.0.shre", "shre", "share",
           {"data.train": [{"manifest": "rows.jsonl", "shre": 1}]}),
    Broken("a manifest without its path", "data.train.0.manifest", "missing", "text", {"data.train": [{"share": 1}]}),
    Broken("the toy in a list", "data.train.0.manifest", "toy", "text", {"data.train": [{"manifest": "toy"}]}),
    Broken("a misspelt key of a split", "data.held_out.shre", "shre", "share",
           {"data.held_out": {"shre": 1, "share": 0.5}}),
    Broken("a misspelt key of a rule", "data.select.0.scor", "scor", "score",
           {"data.select": [{"by": "margin", "scor": "total", "score": "total"}]}),
]  # fmt: skip
KEYS = [
    key("train.stpes", 3, "steps", "stpes"),
    key("train.lr", 1e-5, "learning_rate", "lr"),
    key("modle", {"path": "toy"}, "model", "modle"),
    key("learning_rate", 1e-5, "train", "train.learning_rate"),
    key("data.toy.train_pair", 3, "train_pairs", "train_pair"),
    absent("output_dir", "output_dir", "a path"),
    absent("data", "data", "train, held_out"),
    absent("data.train", "data.train", "text"),
    absent("model", "model", "family, path"),
    absent("model.path", "model.path", "text"),
    absent("objective", "objective", "a mapping"),
]
OBJECTIVES = [
    Broken("an objective without a name", "objective.name", "missing", "pg_dpo", {"objective": {"beta": 3}}),
    key("objective", "dpo", "a mapping"),
    key("objective.name", "pgdpo", "pg_dpo", "pgdpo"),
    key("objective.name", 3, "pg_dpo", "3"),
    key("objective.bta", 3, "beta", "bta"),
    key("objective.beta", -1, "> 0"),
    key("objective.beta", NAN, "> 0"),
    key("objective.beta", "5e3", "5.0e+3"),
    key("objective.timestep_weight", "sqrt", "flow_dpo"),
    key("objective.timestep_weight", [[0, 1], [1, -1]], "weight ≥ 0", "entry 2 is [1, -1]"),
    Broken("options that exclude each other", "objective.ipr_weight", "2", "≤ 1",
           {"objective": {"name": "pg_dpo", "ipr_form": "switch", "ipr_weight": 2}}),
    Broken("safeguard's mu", "objective.safeguard", "3", "≤ 1", {"objective.safeguard": {"mu": 3}}),
    Broken("safeguard's scope", "objective.safeguard", "scop", "mu, scope", {"objective.safeguard": {"scop": "pair"}}),
    Broken("a bare on", "objective.True", "on", "on", {"objective": {"name": "sft", True: "both"}}),
    Broken("an adapter as reference without one", "train.reference", "adapter", "frozen",
           {"train.reference": "adapter", "model.adapter": None}),
    Broken("the toy's folder with a pipeline's encoders", "model.path", "toy", "text",
           {"model.path": "toy", "model.encoders": "pipeline"}),
]  # fmt: skip
TEXTS = [
    text("a tab", "output_dir: x\n\tdata: y\n", "spaces", "data: y"),
    text("an open bracket", "output_dir: [x\ndata: y\n", "YAML", "data: y"),
    text("a missing space", "output_dir: x\ntrain:\n  steps:3\n  seed: 1\n", "YAML", "seed"),
    text("a key twice", "output_dir: x\ndata: {}\noutput_dir: y\n", "once", "output_dir", "output_dir"),
    text("a program in a tag", "output_dir: !!python/object/apply:os.system [ls]\n", "YAML", "python/object"),
    text("a bomb of aliases", BOMB, "100000", "aliases"),
    text("an alias of itself", "a: &a [*a]\n", "100000", "alias"),
    text("nothing", "", "output_dir", "nothing"),
    text("a list", "- a\n- b\n", "output_dir", "list"),
    text("Latin-1", "output_dir: Käse\n".encode("latin-1"), "YAML", "utf-8"),
    Broken("no such file", "CONFIG", "gone.yaml", "YAML file", config="gone.yaml", where="gone.yaml"),
    Broken("a change for the file", "CONFIG", "train.steps=3", "YAML file",
           config="train.steps=3", where="train.steps=3"),
    Broken("a change without =", "train.steps", "train.steps", "section.key=value",
           arguments=("train.steps",), where="command line"),
    Broken("a change below a value", "train.steps.x", "train.steps.x=1", "section.key=value",
           arguments=("train.steps.x=1",), where="command line"),
    Broken("a change that is no YAML", "train.steps", "[1", "YAML",
           arguments=("train.steps=[1",), where="command line"),
]  # fmt: skip
ROWS = [
    Broken("row without prompt", "prompt", "missing", "text", rows=lambda rows: rows[1].pop("prompt"), where=MANIFEST),
    Broken("row with another name for chosen", "chosen", "missing", "path",
           rows=lambda rows: rows[1].update(choosen=rows[1].pop("chosen")), where=MANIFEST),
    row("chosen", "clips/gone.mp4", "relative to the manifest"),
    row("chosen", 7, "a path"),
    row("rejected", "../../etc/passwd", "relative to the manifest"),
    row("rejected", "/etc/passwd", "relative to the manifest"),
    row("rejected", "pipe:1", "a URL"),
    row("rejected", "ssh://host/a.mp4", "a URL"),
    row("id", "0", "once", "`0`"),
    row("id", 1, "text"),
    row("id", "  ", "text"),
    row("prompt", 3, "text"),
    row("preference", 2, "0 to 1"),
    row("preference", "A", "0 to 1"),
    row("preference", NAN, "0 to 1"),
    row("preference", True, "0 to 1"),
    row("weight", -1, "≥ 0"),
    row("dimensions", {"VQ": "A"}, "0 to 1"),
    row("segments", [1, 0], "start, end"),
    row("segments", [SEGMENT, SEGMENT], "without overlap", "'start': 0"),
    row("chosen_is_real", "yes", "true or false"),
    row("caption_rejected", 3, "text"),
    row("scores", {"chosen": {"total": None}}, "number"),
    row("fps", 0, "> 0"),
    row("num_frames", 1.5, "whole number"),
    row("width", -4, "≥ 1"),
    row("sha256_chosen", "abc", "64"),
    row("mask", "clips/gone.png", "relative to the manifest"),
    row("label_smoothing", 0.9, "0.5"),
    row("segment_labels", [2], "≤ 1"),
    row("reward", 3, "[chosen, rejected]"),
    Broken("two preferences", "probability", "0.2", "0.9",
           rows=lambda rows: rows[1].update(preference=0.9, probability=0.2), where=MANIFEST),
    Broken("a column that the objective needs", "segment_labels", "segment_labels", "one number per segment",
           {"objective": {"name": "dense_dpo"}}, rows=lambda rows: rows[0].update(segment_labels=[1]), where=MANIFEST),
    Broken("a weight in some rows", "weight", "weight", "in every row",
           rows=lambda rows: rows[0].update(weight=1), where=MANIFEST),
]  # fmt: skip
MANIFESTS = [
    lines("a row that is no JSON", GOOD + "{id: 1}\n", "", "{id: 1}", "JSON object"),
    lines("a key twice in a row", GOOD + '{"id": "1", "id": "2"}\n', "id", "twice", "once"),
    lines("a row that is a list", GOOD + "[1, 2]\n", "", "list", "JSON object"),
    lines("a row in Latin-1", GOOD.encode() + '{"prompt": "Käse"}\n'.encode("latin-1"), "", "0xe4", "UTF-8"),
    lines("an empty manifest", "\n", "", "empty", "id, prompt"),
    Broken("a manifest that is not there", "data.train", "gone.jsonl", "JSONL or Parquet",
           {"data.train": "gone.jsonl"}, where="gone.jsonl"),
    Broken("a folder for a manifest", "data.train", "clips", "JSONL or Parquet",
           {"data.train": "clips"}, where="clips"),
    Broken("a scheme that is not known", "data.train", "nowhere://a/rows.jsonl", "JSONL or Parquet",
           {"data.train": "nowhere://a/rows.jsonl"}, where="nowhere://a/rows.jsonl"),
    Broken("JSON called Parquet", "data.train", "rows.parquet", "JSONL or Parquet",
           {"data.train": "rows.parquet"}, where="rows.parquet"),
]  # fmt: skip
CLIPS = [
    row("chosen", "clips/page.mp4", "decodes"),
    row("chosen", "clips/cut.mp4", "decodes"),
    row("chosen", "clips/empty.mp4", "decodes"),
    row("chosen", "clips/short.mp4", "4x16x16"),
    Broken("another size", "width", "32", "one value in both",
           rows=lambda rows: rows[1].update(chosen="clips/wide.mp4"), where=MANIFEST),
    Broken("another rate", "fps", "16", "one value in both",
           rows=lambda rows: rows[1].update(chosen="clips/fast.mp4"), where=MANIFEST),
    row("mask", "clips/page.mp4", "a picture of 16x16 pixels"),
    row("mask", "clips/wide.mp4", "or a clip like the pair's"),
    row("mask", "clips/page.png", "a picture of 16x16 pixels"),
    row("sha256_chosen", "0" * 64, "", "000000"),
]  # fmt: skip
CASES = [*NUMBERS, *CHOICES, *MANIFESTS_NAMED, *KEYS, *OBJECTIVES, *TEXTS, *ROWS, *MANIFESTS, *CLIPS]


def good_config() -> dict:
    return {
        "output_dir": "out",
        "data": {"train": MANIFEST, "num_frames": 4, "height": 16, "width": 16, "toy": {"seed": 1}},
        "model": {"path": "toy", "encoders": "toy", "adapter": {"rank": 4}},
        "objective": {"name": "dpo", "beta": 500},
        "diffusion": {"shift": 1.0},
        "train": {"steps": 4, "global_batch_groups": 2, "micro_batch_groups": 2, "precision": "fp32"},
        "evaluate": {"fps": 8},
    }


def write_clips(folder: Path) -> None:
    """Good clips, and one of each kind of bad ones."""
    import numpy as np

    from pgdpo.video import write_video

    folder.mkdir(parents=True)
    grey = np.full((6, 16, 16, 3), 100, np.uint8)
    for number, name in enumerate(("0a", "0b", "1a", "1b")):
        write_video(folder / f"{name}.mp4", grey + 10 * number, 8)
    write_video(folder / "short.mp4", grey[:3], 8)
    write_video(folder / "wide.mp4", grey.repeat(2, axis=2), 8)
    write_video(folder / "fast.mp4", grey, 16)
    for name in ("page.mp4", "page.png"):
        (folder / name).write_text("<html>not found</html>")
    (folder / "empty.mp4").touch()
    whole = (folder / "fast.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 9 // 10])


def build(case: Broken, folder: Path, clips: Path) -> None:
    """Write a case's files into `folder`."""
    folder.mkdir()
    (folder / "clips").symlink_to(clips, target_is_directory=True)
    config = good_config()
    for dotted, value in case.keys.items():
        put(config, dotted, value)
    if case.drop:
        put(config, case.drop, None, remove=True)
    written = yaml.safe_dump(config, sort_keys=False).encode() if case.text is None else case.text
    (folder / CONFIG).write_bytes(written)
    rows = [
        {"id": str(n), "prompt": "a ball", "chosen": f"clips/{n}a.mp4", "rejected": f"clips/{n}b.mp4"}
        for n in (0, 1)
    ]
    if case.rows is not None:
        case.rows(rows)
    content = "".join(json.dumps(each) + "\n" for each in rows).encode()
    (folder / MANIFEST).write_bytes(content if case.lines is None else case.lines)
    (folder / "rows.parquet").write_bytes(content)


def put(config: dict, dotted: str, value: Any, remove: bool = False) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    if remove:
        del config[leaf]
    else:
        config[leaf] = value


def main(folder: Path) -> None:
    """Check every case, and a good one, each in a folder of its own."""
    from pgdpo.checking import run_check

    clips = folder / "clips"
    write_clips(clips)
    results = []
    for number, case in enumerate(CASES):
        place = folder / f"{number:03d}"
        build(case, place, clips)
        os.chdir(place)
        started = time.process_time()
        findings = run_check(case.config, list(case.arguments))
        results.append(
            {
                "name": case.name,
                "seconds": time.process_time() - started,
                "exit_code": findings.exit_code,
                "problems": [{**each.as_json(), "text": str(each)} for each in findings.problems],
                "torch": "torch" in sys.modules,
            }
        )
    (folder / "found.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
