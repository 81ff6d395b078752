"""Ranks that open prepared pairs together, and write down which files each of them looked at and hashed."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from pgdpo.config.read import load_config
from pgdpo.data import verified
from pgdpo.engine.engine import start_distributed
from pgdpo.messages.errors import InputError
from pgdpo.training.opening import open_pairs


def open_thrice(config: str, victim: str) -> list[dict]:
    """Files that this rank looked at and hashed, and what was refused: for new files, for known ones, and when the last
    byte of `victim` is another."""
    start_distributed()
    found: list[dict] = []
    look, digest = verified.wrong_size, verified.sha256_of
    verified.wrong_size = lambda path, entry: found[-1]["looked"].append(path.name) or look(path, entry)
    verified.sha256_of = lambda path: found[-1]["hashed"].append(path.name) or digest(path)
    for time in range(3):
        dist.barrier()
        if time == 2 and dist.get_rank() == 0:
            content = bytearray(Path(victim).read_bytes())
            content[-1] ^= 1
            Path(victim).write_bytes(content)
        dist.barrier()
        found.append({"looked": [], "hashed": [], "refused": None})
        try:
            data = open_pairs(load_config(config), "train")
            found[-1]["fingerprint"] = data.fingerprint
        except InputError as error:
            found[-1]["refused"] = str(error)
    return found
