"""The picture of ``fastprio bench``: ns an index against N, everything that was measured and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by any eye; what shares one differs in line and marker as well.
OURS, TORCH, TREES, REBUILT, LIMIT = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
SOLID, DASHED, DOTTED, MIXED = "-", "--", ":", "-."

# (label, where its numbers stand, colour, line, marker), from what is ours to what others do.
EPOCHS = {
    "draw+record": ("fastprio: draw, record losses", OURS, MIXED, "D"),
    "draw+update": ("fastprio: draw, update (lists)", OURS, SOLID, "o"),
    "uniform": ("torch uniform", TORCH, SOLID, "s"),
    "weighted": ("torch weighted, frozen", TORCH, DASHED, "s"),
}
CALLS = {
    ("tree", "sample"): ("SumTree.sample", OURS, DASHED, "^"),
    ("tree", "update"): ("SumTree.update", OURS, DOTTED, "v"),
    ("torchrl32", "both"): ("TorchRL fp32", TREES, SOLID, "P"),
    ("torchrl64", "both"): ("TorchRL fp64", TREES, DASHED, "P"),
    ("cpprb", "both"): ("cpprb", TREES, DOTTED, "X"),
    ("tianshou", "both"): ("Tianshou", TREES, MIXED, "*"),
    ("multinomial", "both"): ("torch.multinomial", REBUILT, SOLID, "<"),
    ("choice", "both"): ("numpy choice", REBUILT, DASHED, ">"),
    ("alias", "both"): ("alias table, rebuilt", REBUILT, DOTTED, "d"),
}


def lines(record: Mapping[str, Any]) -> list[tuple[str, str, str, str, list[tuple[int, float]]]]:
    """(label, colour, line, marker, [(N, ns an index), ...]) of everything that a record of the bench holds."""
    made = []
    for name, style in EPOCHS.items():
        points = [(int(n), found[name]["ns_per_index"]) for n, found in record["results"].items() if name in found]
        made.append((*style, points))
    for (name, part), style in CALLS.items():
        points = [(int(n), found[name][part]["ns_per_index"]) for n, found in record["calls"].items() if name in found]
        made.append((*style, points))
    limit = [(int(n), nanoseconds) for n, nanoseconds in record["limit"].items()]
    made.append(("limit: bare random read", LIMIT, SOLID, "", limit))
    return [line for line in made if line[-1]]


def spread(heights: list[float], gap: float) -> list[float]:
    """The heights moved as little as it takes for neighbours to be ``gap`` apart, in the same order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Stretches of labels that touch, each as (where it wants to begin, how many): merged until none overlap.
    stretches: list[tuple[float, int]] = []
    for k in order:
        begin, count = heights[k], 1
        while stretches and stretches[-1][0] + gap * stretches[-1][1] > begin:
            before, many = stretches.pop()
            begin = (before * many + (begin - gap * many) * count) / (many + count)
            count += many
        stretches.append((begin, count))
    placed = [begin + gap * k for begin, count in stretches for k in range(count)]
    moved = [0.0] * len(heights)
    for k, height in zip(order, placed, strict=True):
        moved[k] = height
    return moved


def plot(path: Path, record: Mapping[str, Any]) -> None:
    """Draws a record of the bench into a PNG file, each line labelled at its end.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10.5, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1), dpi=150)
    axes = figure.subplots()
    drawn = lines(record)
    for _, colour, line, marker, points in drawn:
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.6)
    axes.set(xscale="log", yscale="log", xlabel="N, examples", ylabel="ns an index")
    last = max(n for *_, points in drawn for n, _ in points)
    first = min(n for *_, points in drawn for n, _ in points)
    # Labels stand in a column right of the last N, each joined to the end of its line; 0.034 of the height is a line.
    low, high = (math.log10(value) for value in axes.get_ylim())
    ends = [math.log10(points[-1][1]) for *_, points in drawn]
    places = spread(ends, 0.036 * (high - low))
    low, high = min(low, places[0], *places), max(high, *places)
    axes.set_ylim(10**low, 10**high)
    width = max(math.log10(last / first), 1.0)  # in decades; one N alone stands near the right edge
    column = last * 10 ** (0.035 * width)
    for (label, colour, _, _, points), place in zip(drawn, places, strict=True):
        n, end = points[-1]
        text = label if n == last else f"{label} (to {n:,})"
        axes.annotate(text, (column, 10**place), color=colour, va="center", fontsize=9, annotation_clip=False)
        axes.plot(
            [n, column / 10 ** (0.005 * width)], [end, 10**place], color=colour, linewidth=0.5, alpha=0.6, clip_on=False
        )
    axes.set_xlim(min(first / 10 ** (0.03 * width), last / 10**width), last * 10 ** (0.02 * width))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", alpha=0.25, linewidth=0.6)
    figure.suptitle(f"What an index costs, batches of {record['batch']}, one thread", fontsize=12)
    axes.set_title(
        f"{record['machine']}; torch {record['versions']['torch']}. torch and fastprio over whole epochs; peers call "
        "by call, a batch drawn\nand as many priorities set; multinomial, choice and alias anew for each batch",
        fontsize=8,
        loc="left",
        color="0.35",
    )
    figure.savefig(path)
