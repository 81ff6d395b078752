"""The registry: names, options, needs, the table, and that none of it needs torch."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from objective_samples import random_errors, random_info, to_pair_info, to_torch

from pgdpo.messages.errors import InputError
from pgdpo.objectives import PairInfo, available, build_objective, check_options, formulas, get_spec
from pgdpo.objectives.advice import beta_report, saturation_advice
from pgdpo.objectives.batch import Batch
from pgdpo.objectives.catalogue.docs import markdown, notes, rows
from pgdpo.objectives.catalogue.listing import overview
from pgdpo.objectives.catalogue.standing import STANDINGS, TRAINS, by_standing
from pgdpo.objectives.registry import FORMULAS, REGISTRY
from pgdpo.objectives.spec import CONFIDENCE, Spec
from pgdpo.rows.columns import COLUMNS, OF_LISTS

pytestmark = pytest.mark.quick

NAMES = available()


def test_every_declared_objective_is_registered_once():
    """Under the name of its function, as it stands in some file of `formulas/`."""
    files = [module.name for module in pkgutil.iter_modules(formulas.__path__)]
    declared = [
        (f"{file}.{name}", spec)
        for file in files
        for name, spec in vars(importlib.import_module(f"{formulas.__name__}.{file}")).items()
        if isinstance(spec, Spec) and spec.compute.__module__.endswith(f".{file}")
    ]
    assert sorted(FORMULAS) == sorted(place for place, _ in declared)
    assert all(REGISTRY[place.partition(".")[2]] is spec for place, spec in declared)


@pytest.mark.parametrize("name", NAMES)
def test_every_spec_is_complete(name):
    spec = get_spec(name)
    assert spec.confidence in CONFIDENCE
    assert spec.paper and spec.summary.endswith(".") and spec.formula
    for key, option in spec.options.items():
        assert option.check(key, option.default) == option.default
    if spec.confidence == "reconstructed":
        assert "reconstruction" in spec.note


def test_catalogue_defaults():
    wanted = {
        "dpo": {"beta": 5000},
        "dense_dpo": {"beta": 500},
        "smpo": {"beta": 2000, "gamma": 10},
        "inpo": {"beta": 2000},
        "inversion_dpo": {"beta": 2000},
        "spo": {"beta": 10, "epsilon": 0.1},
        "d3po": {"beta": 0.1, "epsilon": 0.1},
        "pso": {"beta": 200, "nu": 0.1, "weight": 1},
        "gdro": {"tau": 0.05},
        "dro": {"margin": 0.001},
        "mapo": {"s": 0.5, "weight": 0.1, "horizon": 1000},
        "dspo": {"beta": 0.001},
        "dmpo": {"a": 0.01},
        "kto": {"beta": 1000},
        "video_dpo": {"beta": 5000},
        "local_dpo": {"full_weight": 1, "mask_weight": 1, "mask_sft": 0.1, "full_sft": 0.1},
        "pg_dpo": {"ars_k": 1, "ipr_weight": 1, "ipr_sharpness": 1, "ipr_threshold": 1, "ars_clip": 10},
    }
    for name, options in wanted.items():
        found = check_options(name)
        assert {key: found[key] for key in options} == options


BAD = [
    ("dpoo", {}, "unknown objective `dpoo`; did you mean `dpo`?"),
    ("dpo", {"betta": 1.0}, "objective `dpo` has no option `betta`; did you mean `beta`?"),
    ("dpo", {"beta": -1}, "objective `dpo`: `beta` is -1; allowed: > 0"),
    ("dpo", {"beta": float("nan")}, "`beta` is nan"),
    ("dpo", {"beta": float("inf")}, "`beta` is inf"),
    ("dpo", {"beta": "5e3"}, "write 5.0e+3"),
    ("dpo", {"beta": True}, "`beta` is True"),
    ("dpo", {"beta": None}, "`beta` is None"),
    ("rdpo", {"label_smoothing": 0.5}, "allowed: ≥ 0 and < 0.5"),
    ("f_dpo", {"divergence": "reverse"}, "did you mean `reverse_kl`?"),
    ("dense_dpo", {"form": ["inside"]}, "allowed: inside | mean"),
    ("dpo", {"safeguard": 0.9}, "allowed: a mapping of mu, scope"),
    ("dpo", {"safeguard": {"scop": "pair"}}, "`safeguard` has no option `scop`; did you mean `scope`?"),
    ("dpo", {"safeguard": {"mu": 1.5}}, "`safeguard`: `mu` is 1.5; allowed: ≥ 0 and ≤ 1"),
    ("dpo", {"sft_weight": -1}, "`sft_weight` is -1"),
    ("dpo", {"logit_cap": 0}, "`logit_cap` is 0; allowed: > 0"),
    ("dpo", {"chosen_pull": -1}, "`chosen_pull` is -1; allowed: ≥ 0"),
    ("dpo", {"adaptive_clip": {"low_start": 0.95}}, "`low_start` is 0.95; allowed: ≤ `low_end`, 0.9"),
    (
        "pg_dpo",
        {"ipr_form": "switch", "ipr_weight": 2},
        "objective `pg_dpo`: `ipr_weight` is 2 with `ipr_form` switch; allowed: ≤ 1",
    ),
    (
        "pg_dpo",
        {"ipr_form": "switch", "ipr_threshold": 2},
        "`ipr_threshold` is 2 with `ipr_form` switch, which doesn't read it; allowed: 1",
    ),
    *(
        ("dpo", {"timestep_weight": value}, f"objective `dpo`: `timestep_weight`{message}")
        for value, message in (
            ("sqrt", " is 'sqrt'; allowed: none | flow_dpo | snr | min_snr | [[sigma, weight], ...]"),
            (2, " is 2; allowed: none | flow_dpo"),
            ([], " is []; allowed: [[sigma, weight], ...], two points or more"),
            ([[0, 1], 3], ": entry 2 is 3; allowed: [sigma, weight], sigma above entry 1's 0 and ≤ 1"),
            ([[0, 1], [True, 1]], ": entry 2 is [True, 1]"),
            ([[0, 1], [0, 2]], ": entry 2 is [0, 2]; allowed: [sigma, weight], sigma above entry 1's 0 and"),
            ([[-0.1, 1], [1, 2]], ": entry 1 is [-0.1, 1]; allowed: [sigma, weight], sigma ≥ 0 and ≤ 1"),
            ([[0, 1], [1.5, 2]], ": entry 2 is [1.5, 2]"),
            ([[0, 1], [0.5, -1], [1, 1]], ": entry 2 is [0.5, -1]"),
            ([[0, 1], [1, float("nan")]], ": entry 2 is [1, nan]"),
            ([[0, 1], [1, float("inf")]], ": entry 2 is [1, inf]"),
        )
    ),
    (None, {}, "unknown objective `None`"),
    (["dpo"], {}, "unknown objective"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_options_name_key_value_and_what_is_allowed(name, options, message):
    for call in (check_options, build_objective):
        with pytest.raises(InputError, match=re.escape(message)):
            call(name, **options)


def test_a_modifier_set_to_none_is_off():
    assert check_options("dpo", safeguard=None) == check_options("dpo")


def test_listing_and_checking_import_no_torch():
    script = """
import sys
from pgdpo.objectives import available, check_options, build_objective
from pgdpo.objectives.catalogue.docs import markdown
from pgdpo.objectives.advice import beta_report
for name in available():
    check_options(name)
check_options("dpo", safeguard={"mu": 0.5})
markdown(), beta_report(5000, 10)
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def everything():
    rng = np.random.default_rng(0)
    info = random_info(rng, 4, 2)
    info["masked"] = random_errors(rng, 4, 2)
    return to_torch(random_errors(rng, 4, 2)), to_pair_info(info)


OPTIONS = [(name, {}) for name in NAMES]
OPTIONS += [("dro", {"form": "direct"}), ("adpo", {"target": "reward"}), ("pg_dpo", {"reward": "external"})]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_needs_are_enough_and_each_is_missed(name, options):
    """With what it declares an objective runs; without any one of these it says which."""
    errors, full = everything()
    objective = build_objective(name, **options)
    needs = objective.needs
    bare = replace(full, **{key: None for key in vars(full) if key not in needs.pairs})
    reference = {"ref_chosen": None, "ref_rejected": None, "excess_chosen": None, "excess_rejected": None}
    drift = {"drift_chosen": None, "drift_rejected": None}
    least = replace(errors, **({} if needs.reference else reference), **({} if needs.predictions else drift))
    assert objective(least, bare).loss.isfinite()
    for key in needs.pairs:
        with pytest.raises(InputError, match=rf"`{name}` needs PairInfo\.{key}"):
            objective(least, replace(bare, **{key: None}))
    if needs.reference:
        with pytest.raises(InputError, match=rf"`{name}` needs the reference's errors"):
            objective(replace(least, **reference), bare)
    if needs.predictions:
        with pytest.raises(InputError, match=rf"`{name}` needs the reference's predictions"):
            objective(replace(least, **drift), bare)


def test_safeguard_asks_for_the_cross_term():
    errors, _ = everything()
    with pytest.raises(InputError, match="cross=True"):
        build_objective("dpo", safeguard={})(errors)


def test_wrong_shapes_are_refused():
    errors, full = everything()
    for name, field in (("madpo", "reward_margin"), ("dense_dpo", "segment_labels"), ("rank_dpo", "reward")):
        wrong = replace(full, **{field: getattr(full, field)[:3]})
        with pytest.raises(InputError, match=rf"PairInfo\.{field} has shape \(3,.*expected \(4,"):
            build_objective(name)(errors, wrong)


@pytest.mark.parametrize("name", NAMES)
def test_margin_and_rewards_are_logged(name):
    errors, full = everything()
    stats = build_objective(name)(errors, full).stats
    assert {"margin", "reward/chosen", "reward/rejected"} <= set(stats)
    assert all(value.shape in ((), (4,)) and not value.requires_grad for value in stats.values())


def test_pg_dpo_logs_alpha_and_gate():
    errors, full = everything()
    assert {"ars/alpha", "ipr/gate"} <= set(build_objective("pg_dpo")(errors, full).stats)


def test_the_table_has_every_objective():
    table = markdown()
    body = [line for line in table.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in body]
    assert sorted(names[: len(available())]) == sorted(available())
    cells = {line.replace("\\|", "").count("|") for line in body[: len(available())]}
    assert cells == {9}
    assert sorted(row["name"] for row in rows()) == sorted(f"`{name}`" for name in available())
    assert "not an equation of the paper" in table


def test_what_an_objective_reads_of_groups_is_said():
    read = {row["name"].strip("`"): row["reads"] for row in rows()}
    whole = {name for name, text in read.items() if text.startswith("whole groups")}
    assert whole == {"sft", "kto", "lpo", "rank_dpo", "gdro", "dgpo", "adpo"}
    assert read["gdro"] == "whole groups (`score` of each sample)"
    assert read["dgpo"] == "whole groups (`advantage` or `score` of each sample)"
    assert read["dpo"] == "pairs, in a group those of `pairing`" and read["dense_dpo"] == "pairs alone"
    text = overview().plain
    assert "Of groups of any size: sft, kto, rank_dpo, lpo" in text and "pairs\nalone: dense_dpo" in text


def test_rows_hold_no_column_that_objectives_do_not_know():
    assert {*COLUMNS} - {*OF_LISTS} <= {each.name for each in fields(PairInfo)}


def test_beta_report():
    """The logit is the same in every convention: half or not, mean or sum."""
    difference, numel = 3e-4, 1000
    ours = -0.5 * 5000 * difference
    found = {row.formula: row.beta for row in beta_report(5000, numel)}
    assert found["u = −½·β·D, means"] * -0.5 * difference == pytest.approx(ours)
    assert found["u = −β·D, means"] * -difference == pytest.approx(ours)
    assert found["u = −½·β·D, sums"] * -0.5 * difference * numel == pytest.approx(ours)
    assert found["u = −β·D, sums"] * -difference * numel == pytest.approx(ours)


def test_saturation_advice():
    assert saturation_advice([], 500) is None
    assert saturation_advice([0.0] * 20, 500) is None
    assert saturation_advice([0.5, 9.0, 2.0], 500) is None
    assert saturation_advice([9.0] * 10 + [1.0] * 10, 500) is None
    assert "near 50 " in saturation_advice([10.0] * 11 + [1.0] * 9, 500)
    assert "saturates" in saturation_advice([10.0] * 11 + [1.0] * 9, 500)
    assert "does nothing" in saturation_advice([5e-4] * 11 + [1.0] * 9, 500)
    assert "near 1e+06 " in saturation_advice([5e-4] * 11 + [1.0] * 9, 500)


def test_three_standings_hold_every_objective_once():
    standings = by_standing()
    assert list(standings) == list(STANDINGS)
    assert sorted(spec.name for specs in standings.values() for spec in specs) == sorted(NAMES)
    assert set(TRAINS) <= set(NAMES)
    for spec in standings["trains here"]:
        assert spec.confidence not in ("ours", "reconstructed") and spec.name in TRAINS
    assert {row["name"]: row["standing"] for row in rows()} == {
        f"`{spec.name}`": standing for standing, specs in standings.items() for spec in specs
    }
    headings = [line for line in markdown().splitlines() if line.startswith("**")]
    assert [line.split("**")[1].lower() for line in headings] == list(STANDINGS)


@pytest.mark.parametrize("name", NAMES)
def test_what_pools_its_batch_says_so(name, monkeypatch):
    """Those whose formula asks for the other ranks' pairs."""
    gathered, asked = Batch.gathered, []
    monkeypatch.setattr(Batch, "gathered", lambda *args: asked.append(1) or gathered(*args))
    errors, full = everything()
    build_objective(name)(errors, full)
    spec = get_spec(name)
    assert bool(asked) == spec.pools
    assert ("not train.global_batch_groups" in notes(spec)) == spec.pools
