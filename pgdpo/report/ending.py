"""How a run ended, for the top of its report."""

from __future__ import annotations

from pgdpo.checkpoints.events import STANDING

SHOWN = 600  # characters of the message; all of it stands among the events


def ending(events: list[dict]) -> dict | None:
    """Of a run that failed or was stopped and has not gone on since: `event`, `step`, `message`, `pairs` (id, share).

    None for one that runs or that came to its end. `share`: of the loss, None where it is not known.
    """
    standing = next((row for row in reversed(events) if row["event"] in STANDING), None)
    if standing is None or standing["event"] not in ("failed", "stopped"):
        return None
    message = standing["message"]
    pairs, shares = standing.get("pairs") or [], standing.get("shares") or []
    return {
        "event": standing["event"],
        "step": standing["step"],
        "message": message if len(message) <= SHOWN else f"{message[:SHOWN]} …",
        "pairs": [(name, shares[place] if place < len(shares) else None) for place, name in enumerate(pairs)],
    }
