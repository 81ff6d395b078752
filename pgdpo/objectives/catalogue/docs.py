"""The catalogue as a table, generated from the registry."""

from __future__ import annotations

from pgdpo.objectives.catalogue.standing import STANDINGS, by_standing, standing_of
from pgdpo.objectives.info import on_groups
from pgdpo.objectives.modifiers import MODIFIERS
from pgdpo.objectives.spec import CONFIDENCE, POOLED, Needs, Option, Spec

COLUMNS = ("name", "paper", "formula", "options", "reads", "needs", "confidence", "notes")
NOTATION = """\
Errors E are means of squared residuals, chosen *w* and rejected *l*, policy *p* and reference *r*;
e = E_p − E_r, r = −e, m = r_w − r_l, κ = ½·β·ω_t, z = κ·m, ℓ(z) = −log σ(z), D = mean (policy − reference)²,
sg = stop-gradient. Where a formula shows β it is β itself. The loss is the mean over pairs or groups,
weighted."""
WHOLE, ONE_PAIR_OR_MORE, PAIRS_ALONE = "whole groups", "pairs, in a group those of `pairing`", "pairs alone"


def rows() -> list[dict[str, str]]:
    """A row per objective, by standing, with the keys of `COLUMNS`, `standing` and `summary`."""
    return [_row(spec) for specs in by_standing().values() for spec in specs]


def markdown() -> str:
    """The notation, a table of objectives for each standing and the table of modifiers, as Markdown."""
    lines = [NOTATION]
    for standing, meaning in STANDINGS.items():
        lines += ["", f"**{standing.capitalize()}**: {meaning}.", "", *_header(COLUMNS)]
        lines += [
            _line([_cell(row[column]) for column in COLUMNS]) for row in rows() if row["standing"] == standing
        ]
    lines += ["", "Modifiers, for any objective:", "", *_header(("modifier", "options", "meaning"))]
    for name, known in MODIFIERS.items():
        single = isinstance(known, Option)
        options = {name: known} if single else known
        meaning = "; ".join(("" if single else f"{key}: ") + option.about for key, option in options.items())
        lines.append(_line([f"`{name}`", _cell(_options(options)), _cell(meaning)]))
    lines += ["", *(f"*{key}*: {meaning}." for key, meaning in CONFIDENCE.items())]
    return "\n".join(lines) + "\n"


def _row(spec: Spec) -> dict[str, str]:
    needs = [_needs(spec.needs)]
    needs += [f"{key}={value}: {_needs(more)}" for (key, value), more in spec.needs_if.items()]
    return {
        "name": f"`{spec.name}`",
        "standing": standing_of(spec),
        "paper": spec.paper,
        "summary": spec.summary,
        "formula": spec.formula,
        "options": _options(spec.options),
        "reads": _reads(spec),
        "needs": "; ".join(filter(None, needs)),
        "confidence": spec.confidence,
        "note": notes(spec),
        "notes": " ".join(filter(None, (spec.summary, notes(spec)))),
    }


def units(spec: Spec) -> str:
    """What the formula is of: WHOLE, ONE_PAIR_OR_MORE or PAIRS_ALONE."""
    alone, _ = on_groups(spec.needs.pairs)
    return PAIRS_ALONE if alone or spec.needs.soft else WHOLE if spec.groups else ONE_PAIR_OR_MORE


def _reads(spec: Spec) -> str:
    """`units`, and what every sample of a group must hold for it."""
    found = units(spec)
    if found == PAIRS_ALONE:
        return found
    _, needed = on_groups((*spec.needs.pairs, *spec.of_groups))
    samples = " and ".join(" or ".join(f"`{key}`" for key in keys) for keys in needed)
    return f"{found} ({samples} of each sample)" if samples else found


def notes(spec: Spec) -> str:
    """The objective's note and what its batch is, as sentences."""
    pooled = f"{POOLED[0].upper()}{POOLED[1:]}." if spec.pools else ""
    return " ".join(filter(None, (spec.note, pooled)))


def _options(options: dict[str, Option]) -> str:
    return ", ".join(f"{key}={_default(option)} ({option.allowed})" for key, option in options.items())


def _default(option: Option) -> str:
    return option.default if isinstance(option.default, str) else f"{option.default:g}"


def _needs(needs: Needs) -> str:
    wanted = (
        (needs.reference and not needs.predictions and not needs.moving, "reference"),
        (needs.moving, "a reference that follows the policy (train.reference: ema)"),
        (not needs.reference, "no reference"),
        (needs.predictions, "reference predictions"),
        (needs.cross, "cross"),
        *((True, name) for name in needs.pairs),
        (needs.soft, "soft labels"),
        (bool(needs.data), needs.data),
    )
    return ", ".join(text for wanted_here, text in wanted if wanted_here)


def _header(columns: tuple[str, ...]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns))]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
