"""What to compile ahead of time: a function per op lists its kernels as its launcher compiles them."""

from __future__ import annotations

import itertools

import aot_ops
from aot import Case


def cases(full: bool) -> list[Case]:
    """Every kernel; with `full` in every combination of dtypes and switches that changes its shape."""
    return [
        *pair_sums(full),
        *pair_second_stage(full),
        *pair_gradients(full),
        *noises(full),
        *aot_ops.cases(full),
    ]


def pair_sums(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.pair_kernels import BLOCK, THREADS, partial_sums

    out = []
    for kind, ref, mask, table, cross in (
        ("bf16", True, False, False, False),
        ("fp32", True, False, False, False),
        ("bf16", True, True, True, True),
        ("fp16", True, False, False, False),
        ("bf16", False, False, False, False),
        ("bf16", True, False, True, True),
        ("bf16", True, True, False, False),
    )[: None if full else 3]:
        name = f"partial_sums {kind}" + "".join(
            f" {word}"
            for word, has in (("ref", ref), ("mask", mask), ("segments", table), ("cross", cross))
            if has
        )
        pointers = dict.fromkeys(("pred", "target", "ref"), kind)
        pointers |= {"mask": "fp32", "table": "i64", "partials": "fp32", "addresses": "i64", "groups": "i64"}
        constants = dict(MEMBERS=2, SEPARATE=False, HAS_REF=ref, HAS_MASK=mask, HAS_GROUPS=False, SHORT_MASK=False, HAS_TABLE=table, CROSS=cross)
        constants |= dict(ALIGN=8, CHUNK=16384, BLOCK=BLOCK)
        loads = (6 if ref else 4) * (2 if kind == "fp32" else 1)
        out.append(
            Case(
                name,
                partial_sums,
                pointers,
                constants,
                THREADS,
                wide_loads=loads,
                registers=208 if mask else 128,
            )
        )
    return out


def pair_second_stage(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.dpo_kernel import PAIRS, preference_stage
    from pgdpo_kernels.pairs.pair_means_kernel import TILE, TILE_REGISTERS, TILE_THREADS, pair_means

    out = []
    for parts, table in itertools.product((512, TILE, 16), (True, False)) if full else [(512, True)]:
        constants = dict(MEMBERS=2, HAS_REF=True, HAS_TABLE=table, CROSS=True, PAIRS=TILE // parts, PARTS=parts)
        pointers = dict.fromkeys(("partials", "errors", "drift", "cross"), "fp32") | {"bounds": "i64"}
        name = f"pair_means {TILE // parts} x {parts}" + " segments" * table
        out.append(Case(name, pair_means, pointers, constants, TILE_THREADS, cuda_registers=TILE_REGISTERS))
    fp32 = (
        "policy",
        "count",
        "excess",
        "cross",
        "omega",
        "weight",
        "loss",
        "per_pair",
        "slopes",
        "loss_slopes",
    )
    pointers = dict.fromkeys(fp32, "fp32") | {"labels": "i64"}
    numbers = ("kappa", "half_inverse_beta", "smoothing", "ars_k", "ars_eps", "ars_clip", "ipr_weight")
    numbers += ("ipr_sharpness", "ipr_threshold", "logit_cap", "chosen_pull", "safeguard_keep")
    for objective, ipr, labels, limited in (
        ("pg_dpo", "bt", False, False),
        ("pg_dpo", "bt", False, True),
        ("pg_dpo", "sft", True, False),
        ("pg_dpo", "switch", False, False),
        ("dpo", "none", False, False),
        ("ipo", "none", False, False),
        ("hinge", "none", True, False),
    )[: None if full else 3]:
        constants = dict(OBJECTIVE=objective, ARS=objective == "pg_dpo", IPR=ipr, SAFEGUARD=labels)
        constants |= dict(
            CAPPED=limited, PULLED=limited, HAS_OMEGA=labels, HAS_WEIGHT=True, LABELLED=labels, PAIRS=PAIRS
        )
        name = f"preference_stage {objective} {ipr}" + " labels safeguard" * labels + " limited" * limited
        out.append(
            Case(
                name,
                preference_stage,
                pointers,
                constants,
                PAIRS,
                floats=numbers,
                fp_fusion=False,
                fused=None,
            )
        )
    return out


def pair_gradients(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.pair_kernels import BLOCK, THREADS, pair_gradient

    out = []
    for kind, fused, drift, mask, table, cross in (
        ("bf16", True, False, False, False, False),
        ("fp32", True, False, False, False, False),
        ("bf16", False, True, True, True, True),
        ("fp16", True, False, False, False, False),
        ("bf16", False, False, False, False, False),
        ("bf16", True, False, True, True, False),
    )[: None if full else 3]:
        flags = (("fused", fused), ("drift", drift), ("mask", mask), ("segments", table), ("cross", cross))
        name = f"pair_gradient {kind}" + "".join(f" {word}" for word, has in flags if has)
        pointers = dict.fromkeys(("pred", "target", "ref", "out"), kind)
        fp32 = ("mask", "grad_loss", "pair_weight", "slopes", "drift_slopes", "cross_slopes", "count")
        pointers |= dict.fromkeys(fp32, "fp32") | {"table": "i64", "addresses": "i64", "groups": "i64"}
        constants = dict(
            FUSED=fused, HAS_WEIGHT=fused, MEMBERS=2, SEPARATE=False, HAS_GROUPS=False, HAS_REF=True, DRIFT=drift, HAS_MASK=mask, SHORT_MASK=False
        )
        constants |= dict(HAS_TABLE=table, CROSS=cross, ALIGN=8, CHUNK=16384, BLOCK=BLOCK, EMULATE_BF16=False)
        each = 2 if kind == "fp32" else 1
        loads, stores = (6 if drift else 4) * each, 2 * each
        wide = dict(wide_loads=loads, wide_stores=stores)
        out.append(Case(name, pair_gradient, pointers, constants, THREADS, fp_fusion=False, **wide))
    return out


def noises(full: bool) -> list[Case]:
    from pgdpo_kernels.pairs.noise_kernel import GROUPS, THREADS, noise_kernel

    out = []
    every = itertools.product(("bf16", "fp32"), ("flow", "epsilon", "v", "noise"))
    every = [(*case, 2) for case in every] + [("bf16", "v", 1), ("bf16", "flow", 8)]
    quick = [("bf16", "v", 2), ("fp32", "flow", 2), ("bf16", "noise", 2), ("bf16", "v", 1)]
    for kind, prediction, members in every if full else quick:
        pointers = dict.fromkeys(("latents", "noisy", "target"), kind)
        pointers |= {"level": "fp32", "pair_ids": "i64", "draw": "i64"}
        constants = dict(PREDICTION=prediction, MEMBERS=members, ALIGN=8, GROUPS=GROUPS, EMULATE_BF16=False)
        each = 2 if kind == "fp32" else 1
        loads = 0 if prediction == "noise" else 4 * members * each
        stores = 4 * each if prediction == "noise" else 8 * members * each
        out.append(
            Case(
                f"noise {kind} {prediction}" + f" K={members}" * (members != 2),
                noise_kernel,
                pointers,
                constants,
                THREADS,
                fp_fusion=False,
                fused=16 * 9,  # of 32 elements a thread; 4 of exact products, 5 of a root
                wide_loads=loads,
                wide_stores=stores,
            )
        )
    return out
