"""One class of `benchmarks.models.patched`, where tests/kernels/ops is on the path and Triton interprets."""

from __future__ import annotations

import functools
import json

import torch
from parity import check_parity
from tiny_models import FAMILIES, KIN, build

from pgdpo_kernels import apply_to, explain, set_backend


def main(names: list[str]) -> None:
    """A line for each class: its name and figures."""
    for name in names:
        print(json.dumps([name, of(name)]), flush=True)


def of(name: str) -> dict:
    """What is replaced, calls of each op and errors of the class's first form; the worst ratio over all its forms."""
    forms = [form for form in (*FAMILIES, *KIN) if class_of(form) == name]
    model, inputs = build(forms[0], torch.float32)
    with set_backend("eager"):
        replaced = apply_to(model, strict=True)
        calls = {choice.op: choice.count for choice in explain(model, **inputs)}
    errors = {"bfloat16, triton": errors_of(forms[0], torch.bfloat16, "triton")}
    exact = {form: errors_of(form, torch.float32, "eager") for form in forms}
    errors["float32, eager"] = exact[forms[0]]
    worst = max(ours / eager for ours, eager in (*errors.values(), *exact.values()))
    return {"replaced": replaced, "calls": calls, "errors": errors, "worst_ratio": worst, "forms": forms}


def errors_of(form: str, dtype: torch.dtype, backend: str) -> tuple[float, float]:
    """Of output and all gradients against float64: patched, and not."""
    return check_parity(*build(form, dtype), dtype, backend)[1:]


@functools.cache
def class_of(form: str) -> str:
    return form.split(",")[0] if form in KIN else type(build(form)[0]).__name__
