"""FLOPs of equal models are counted once: a count takes a second, as long as all else that a tiny training does.

Kept in a folder, which pytest's process and the ranks that it starts share. What a count depends on is its key: the
architecture, the section `model`, the latents' shape, and whether an adapter trains.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from pgdpo.planning.costs.flops import Counts, SampleFlops

FOLDER = "PGDPO_TESTS_COUNTED"  # the variable that names it

_count = SampleFlops._counted


def keep() -> None:
    """Every later count of this process is looked up first."""
    SampleFlops._counted = _looked_up


def _looked_up(asked: SampleFlops, *, adapter: bool) -> Counts:
    model = asked.config.model.model_dump_json()
    key = repr((sorted(asked.family.architecture().items()), model, sorted(asked.shapes.items()), adapter))
    file = Path(os.environ[FOLDER]) / hashlib.sha256(key.encode()).hexdigest()
    if not file.exists():
        counts = _count(asked, adapter=adapter)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(counts))
        part.replace(file)
    return Counts(*map(Counter, json.loads(file.read_text())))
