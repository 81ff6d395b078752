"""The roofline of a result: bandwidth over bytes moved, under the device's copy."""

from __future__ import annotations

from pathlib import Path

COLOURS = {"fused": "tab:blue", "compile": "tab:orange", "eager": "tab:gray"}


def roofline(result: dict, path: Path) -> bool:
    """One panel per op and direction; the roof is the copy, less one empty launch per kernel at small sizes.

    Returns whether there was anything to draw: a run may have ended before a case or the copy was measured.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    of_the_first_form = [row for row in result["rows"] if "form" not in row]
    panels = sorted({(row["op"], row["direction"]) for row in of_the_first_form})
    copy, empty = result["copy_gb_per_s"], result["empty_launch_us"]
    if not panels or copy is None or empty is None:
        return False
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (op, direction) in zip(axes[0], panels, strict=True):
        rows = [row for row in of_the_first_form if (row["op"], row["direction"]) == (op, direction)]
        rows.sort(key=lambda row: row["moved_bytes"])
        sizes = [row["moved_bytes"] for row in rows]
        roof = [size / (size / copy + 1e3 * empty * rows[0]["launches"]) for size in sizes]
        axis.axhline(copy, color="black", linewidth=0.8, label="copy")
        axis.plot(sizes, roof, color="black", linestyle=":", linewidth=0.8, label="copy and launches")
        for name, colour in COLOURS.items():
            points = [(row["moved_bytes"], row["gb_per_s"][name]) for row in rows if name in row["gb_per_s"]]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="bytes moved", title=f"{op} {direction}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("GB/s")
    axes[0][0].legend(fontsize=7)
    machine = result["machine"]
    figure.suptitle(f"{machine['device']}, torch {machine['torch']}, triton {machine['triton']}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
