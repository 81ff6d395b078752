"""Clips from a model at given prompts and seeds, spread over ranks: for validation, evaluation, making."""

from pgdpo.sampling.clips import Sampler, how_sampled
from pgdpo.sampling.share import Parts, share_of

__all__ = ["Parts", "Sampler", "how_sampled", "share_of"]
