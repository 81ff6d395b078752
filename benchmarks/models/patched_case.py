"""One class of `benchmarks.models.patched`, where tests/kernels/ops is on the path and Triton interprets."""

from __future__ import annotations

import torch
from parity import check_parity
from tiny_models import FAMILIES, KIN, build

from pgdpo_kernels import apply_to, explain, set_backend

FORMS = ((torch.bfloat16, "triton"), (torch.float32, "eager"))


def of(name: str) -> dict:
    """What is replaced, calls of each op and errors of the class's first form, and the worst ratio over all forms."""
    forms = [form for form in (*FAMILIES, *KIN) if class_of(form) == name]
    model, inputs = build(forms[0], torch.float32)
    with set_backend("eager"):
        replaced = apply_to(model, strict=True)
        calls = {choice.op: choice.count for choice in explain(model, **inputs)}
    errors = {form: {} for form in forms}
    for form in forms:
        for dtype, backend in FORMS:
            _, ours, eager = check_parity(*build(form, dtype), dtype, backend)
            errors[form][f"{str(dtype).removeprefix('torch.')}, {backend}"] = [ours, eager]
    worst = max(ours / eager for form in errors.values() for ours, eager in form.values() if eager)
    return {
        "replaced": replaced,
        "calls": calls,
        "errors": errors[forms[0]],
        "worst_ratio": worst,
        "forms": forms,
    }


def class_of(form: str) -> str:
    if form in KIN:
        return form.split(",")[0]
    return type(build(form)[0]).__name__
