"""Parts of commands that refuse a configuration, where the whole command would need pairs or a run of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from pgdpo.config import Config


def opened(config: Config) -> object:
    from pgdpo.models import open_family

    return open_family(config.model)


def sized(config: Config) -> None:
    for size in config.data.sizes:
        opened(config).check_clip(*size)


def shared(config: Config) -> None:
    from pgdpo.engine.parallel import check_sequence_parallel

    for size in config.data.sizes:
        check_sequence_parallel(config, opened(config), opened(config).latent_shape(*size))


def adapted(config: Config) -> None:
    from pgdpo.engine.policy import open_adapter

    open_adapter(opened(config), config.model.adapter)


def attended(config: Config) -> None:
    from pgdpo.engine.attention import check_attention

    check_attention(config, opened(config), torch.device("cpu"))


def noised(config: Config) -> None:
    from pgdpo.objectives import needs_of
    from pgdpo.training.task.checks import check_noise

    name = config.objective["name"]
    check_noise(name, needs_of(name, **config.objective_options), config)


def evaluated(config: Config) -> None:
    from pgdpo.evaluation.evaluate import evaluate

    evaluate(SimpleNamespace(config=config, out=Path("nowhere"), folder=Path("nowhere")))


def read(config: Config) -> None:
    from pgdpo.engine.zero.load import check_files

    check_files(opened(config))


def rewarded(config: Config) -> None:
    from pgdpo.evaluation.rewards import try_reward

    try_reward(config, "a ball")


def timed(config: Config) -> None:
    opened(config).check_fps(config.data)
