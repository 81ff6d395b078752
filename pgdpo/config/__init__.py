"""The configuration: its sections with every key, default, unit and range, and the YAML that they are read from."""

from pgdpo.config.config import PARTS, Config, StudyConfig, fps_of
from pgdpo.config.data import (
    DataConfig,
    OrderRule,
    SelectRule,
    SourceConfig,
    SplitConfig,
    ToyConfig,
    WeightRule,
)
from pgdpo.config.evaluate import EvaluateConfig, MakeConfig
from pgdpo.config.families import SampleSettings, families, family_class, sample_settings
from pgdpo.config.model import AdapterConfig, DiffusionConfig, ModelConfig
from pgdpo.config.section import Section
from pgdpo.config.train import TrainConfig

__all__ = [
    "PARTS",
    "AdapterConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EvaluateConfig",
    "MakeConfig",
    "ModelConfig",
    "OrderRule",
    "SampleSettings",
    "Section",
    "SelectRule",
    "SourceConfig",
    "SplitConfig",
    "StudyConfig",
    "ToyConfig",
    "TrainConfig",
    "WeightRule",
    "families",
    "family_class",
    "fps_of",
    "sample_settings",
]
