"""`pgdpo prepare`: both splits of a configuration, on as many ranks as there are."""

from __future__ import annotations

import os

import torch

from pgdpo.config import Config, sample_settings
from pgdpo.data.places import places_of
from pgdpo.data.preparing.prepare import prepare
from pgdpo.data.sources import sources_of
from pgdpo.files.writable import check_writable
from pgdpo.messages.console import progress_bar, say
from pgdpo.models import open_family
from pgdpo.ranks.joined import joined_ranks
from pgdpo.toy.clips import render_dataset


def prepare_splits(config: Config, *, full: bool = False) -> None:
    """Clips and prompts of both splits -> `output_dir/prepared/<split>`; `full` as `prepare` takes it."""
    for key, folder in places_of(config):
        check_writable(folder, key)
    with joined_ranks() as ranks:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        family = open_family(config.model)
        encoders = family.load_encoders(device)
        ranks.main_first(lambda: _render_toy(config))
        toy = config.output_dir / "toy"
        how_sampled = sample_settings(config.evaluate, family.sampling(config.data.sizes[0][1:]))
        for split in ("train", "held_out"):
            sources = sources_of(config.data, split, toy)
            if not sources:
                continue
            folder = config.prepared_folder(split)
            # Clips are sampled at held-out prompts; what is trained on does not follow from how.
            negative = how_sampled.negative_prompt if split == "held_out" else ""
            how = {"split": split, "toy": toy, "negative": negative, "full": full}
            done = prepare(folder, config.data, family, encoders, ranks, **how)
            texts = [done.index["text"], done.index["negative"]]
            size = sum(entry["bytes"] for entry in [*texts, *done.index["shards"]])
            named = ", ".join(str(source.manifest) for source in sources)
            say(f"prepared {done} of {named} -> {folder} ({size / 1e6:.1f} MB)")


def _render_toy(config: Config) -> None:
    """The toy world's clips and manifests, where they are asked for."""
    toy = config.data.toy
    if "toy" not in (config.data.train, config.data.held_out):
        return
    with progress_bar("render toy clips", total=toy.train_pairs + toy.held_out_pairs) as bar:
        render_dataset(
            config.output_dir / "toy",
            train_pairs=toy.train_pairs,
            held_out_pairs=toy.held_out_pairs,
            seed=toy.seed,
            samples=toy.samples,
            sound=toy.sound,
            progress=lambda done, total: bar.advance(),
        )
        bar.finish()
