"""Every objective by name: one line each, in the catalogue's order."""

from __future__ import annotations

import importlib

from pgdpo.objectives.spec import Spec

FORMULAS = (
    "sft.sft",
    "sigmoid.dpo",
    "sigmoid.pg_dpo",
    "segments.dense_dpo",
    "sigmoid.ipo",
    "sigmoid.hinge",
    "robust.cdpo",
    "robust.rdpo",
    "reference_free.simpo",
    "links.dpop",
    "absolute.cal_dpo",
    "robust.exo",
    "absolute.nca",
    "absolute.bco",
    "absolute.sppo",
    "absolute.apo_zero",
    "absolute.apo_down",
    "links.discopop",
    "links.aot",
    "links.f_dpo",
    "weighted.madpo",
    "weighted.beta_dpo",
    "reference_free.asft",
    "lists.adpo",
    "segments.sgdpo",
    "links.balanced_dpo",
    "weighted.uncertainty_dpo",
    "absolute.flex_dpo",
    "links.reg_dpo",
    "segments.ld_dpo",
    "unpaired.kto",
    "reference_free.mapo",
    "regression.dspo",
    "robust.dmpo",
    "weighted.smpo",
    "regression.inversion_dpo",
    "sigmoid.inpo",
    "reference_free.pso",
    "lists.rank_dpo",
    "lists.lpo",
    "lists.gdro",
    "lists.dgpo",
    "weighted.phygdpo",
    "reference_free.dro",
    "regression.linear_dpo",
    "segments.local_dpo",
    "weighted.video_dpo",
    "links.poly_dpo",
    "regression.capo",
    "steps.spo",
    "steps.d3po",
    "steps.tailor_dpo",
    "weighted.adaptive_dpo",
    "weighted.sipo",
    "sigmoid.npo",
)  # file and function in `formulas/`


def _declared(place: str) -> Spec:
    file, name = place.split(".")
    return getattr(importlib.import_module(f"pgdpo.objectives.formulas.{file}"), name)


REGISTRY: dict[str, Spec] = {spec.name: spec for spec in map(_declared, FORMULAS)}
