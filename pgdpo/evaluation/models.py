"""The two models that an evaluation compares, in memory one after the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist

from pgdpo.checkpoints.export import check_trained, load_trained
from pgdpo.checkpoints.identity import check_init
from pgdpo.checkpoints.runs import Run
from pgdpo.engine.parallel import arrange_ranks
from pgdpo.engine.policy import build_policy
from pgdpo.messages.console import say_once
from pgdpo.models.adapters.adapter import NAME, REFERENCE, add_reference_adapter, start_from
from pgdpo.models.adapters.lora_file import open_lora
from pgdpo.models.weights.held import OneAtATime
from pgdpo.models.weights.kept import compute_dtype

WHICH = ("reference", "aligned")


class Models:
    """A run's aligned model and its reference; nothing is loaded before it is opened.

    With an adapter they are one model, switched. Without one the weights of the one make way for those of the other.
    With `train.zero_stage: 3` several ranks hold a share each, and must run all forwards together (`in_step`).
    """

    def __init__(self, run: Run, device: torch.device) -> None:
        """Raises InputError if the model is not the one that the run began with, or the LoRA that it started from, as
        its reference, is not at `model.adapter.init`."""
        self._run, self._device = run, device
        adapter = run.config.model.adapter
        self._apart = adapter is None
        self._at_init = adapter is not None and adapter.reference_starts_at_init
        self.in_step = run.config.train.zero_stage == 3 and dist.get_world_size() > 1
        check_trained(run)
        if self._at_init:
            check_init(run.config, run.state["identity"])
        self._held, self._beside = OneAtATime(), OneAtATime()

    @contextlib.contextmanager
    def opened(self, which: str) -> Iterator[torch.nn.Module]:
        """One of WHICH, for forwards without gradients."""
        load = functools.partial(self._load, which)
        with self._computing(self._held.get(which if self._apart else "both", load), which) as transformer:
            yield transformer

    @contextlib.contextmanager
    def positive(self) -> Iterator[torch.nn.Module]:
        """The reference, while the aligned model is open: it answers guidance's conditional branch where the aligned
        model was trained for the other. Without an adapter both are then in memory."""
        if not self._apart:
            with self.opened("reference") as transformer:
                yield transformer
            return
        say_once("clips of the aligned model take both models: both are in memory")
        load = functools.partial(self._load, "reference")
        with self._computing(self._beside.get("reference", load), "reference") as transformer:
            yield transformer

    def release(self) -> None:
        """Let go of what is held."""
        self._beside.drop_others()
        self._held.drop_others()

    @contextlib.contextmanager
    def _computing(self, transformer: torch.nn.Module, which: str) -> Iterator[torch.nn.Module]:
        half = compute_dtype(self._run.config) == torch.bfloat16
        switched = which == "reference" and not self._apart
        if switched:
            self._switch(transformer, reference=True)
        try:
            with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=half):
                yield transformer
        finally:
            if switched:
                self._switch(transformer, reference=False)

    def _switch(self, transformer: torch.nn.Module, *, reference: bool) -> None:
        """The aligned model's adapter: its own, or the reference's (none, or the one that the run started from)."""
        if self._at_init:
            transformer.set_adapter(REFERENCE if reference else NAME)
        elif reference:
            transformer.disable_adapters()
        else:
            transformer.enable_adapters()

    def _load(self, which: str) -> torch.nn.Module:
        run, config = self._run, self._run.config
        how = {"forward_only": True, "ranks": arrange_ranks(1, self._device) if self.in_step else None}
        if self._apart and which == "reference":
            _, transformer = build_policy(config, self._device, **how)
        else:
            family, transformer = load_trained(run, self._device, **how)
        if self._at_init:
            add_reference_adapter(transformer, identity=True)
            start_from(transformer, open_lora(family, config.model.adapter), config.model.adapter, REFERENCE)
        self._say_size(transformer)
        return transformer

    def _say_size(self, transformer: torch.nn.Module) -> None:
        whole = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in transformer.parameters())
        held = sum(getattr(p, "ds_tensor", p).numel() * p.element_size() for p in transformer.parameters())
        models = "reference and aligned model one after the other" if self._apart else "one model for both"
        share = f"{held / 1e9:.3g} GB" if self.in_step else "whole"
        dtype, ranks = compute_dtype(self._run.config), dist.get_world_size()
        where = f"{share} on each of {ranks} ranks" if ranks > 1 else "in this process"
        say_once(f"{models}: {whole / 1e9:.3g} GB of weights in {dtype}, {where}")
