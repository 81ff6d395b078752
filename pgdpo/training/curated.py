"""`pgdpo curate`: what becomes of the prepared pairs before they are trained on."""

from __future__ import annotations

from pgdpo.config import Config
from pgdpo.data.curation.apply import examine
from pgdpo.messages.console import say
from pgdpo.training.opening import open_pairs


def show_curated(config: Config) -> dict:
    """What `data.select` and `data.weight` keep of the prepared pairs and why, sources, and the probe; as a dict."""
    data = open_pairs(config, "train")
    for kept in data.curation:
        say(f"data.select {kept}")
    found = examine(data)
    counts = ", ".join(f"{name}: {count}" for name, count in found["sources"].items())
    say(f"{len(data)} of {len(data.index['pairs'])} pairs are trained on; sources: {counts}")
    say(found["verdict"])
    return found
