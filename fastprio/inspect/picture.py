"""An inspection as a picture: priorities, the score of the suspects, and how old the scores are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastprio.inspect.numbers import Distribution, Inspection

# Of Okabe and Ito's palette, told apart by any eye and in grey.
BARS, LINE = "#0072B2", "#D55E00"


def draw(path: Path, title: str, found: Inspection) -> None:
    """Writes the PNG file. ``title``: what was inspected. Raises: OSError. Cost: does not grow with the store."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained", dpi=130)
    policy = found.policy if len(found.policy) <= 90 else found.policy[:87] + "..."
    unseen = "" if found.seen == found.size else f", {found.size - found.seen:,} never seen"
    heading = f"{title}: {found.size:,} examples{unseen}; epoch {found.epoch}, {found.step:,} updates\n{policy}"
    figure.suptitle(heading, fontsize=11, parse_math=False)
    left, middle, right = figure.subplots(1, 3)

    _what_draws(left, found)
    if found.suspects is None or found.score is None:
        _empty(middle, "Evidence of wrong labels", "the store keeps nothing that tells")
    else:
        name, at, tied = found.suspects.evidence.name, found.suspects.at, found.suspects.tied
        heading = f"Evidence of wrong labels: {name}\n{found.score.examples:,} examples have a score"
        _histogram(middle, found.score, heading, name, "examples")
        middle.set_ylim(top=1.15 * max(found.score.counts))  # room for the legend
        least = float(found.suspects.scores[at[-1]]) - 0.5 * _whole(found.score)
        if least > 0 or not found.score.log:
            label = f"from here on: the {len(at):,} listed" + (f" and {tied:,} more" if tied else "")
            middle.axvline(least, color=LINE, linewidth=1.5, label=label)
            middle.legend(frameon=False, fontsize=9, loc="upper left")
    if found.ages is None:
        _empty(right, "Age of the scores", "nothing has been scored yet")
    else:
        heading = f"Age of the scores\n{found.stats['score_age']:,.4g} updates on average"
        few = "examples" if found.ages.examples == found.seen else f"of {found.ages.examples:,} examples looked at"
        _histogram(right, found.ages, heading, "batches recorded since the example was scored", few)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    path.write_bytes(png.getvalue())  # only a whole picture


def _what_draws(axes: Any, found: Inspection) -> None:
    """The priorities, or the losses of a store without any."""
    losses = [of for of in found.columns if of.name == "loss" and of.examples]
    even = f"as even as {found.stats['effective_sample_size']:,.0f} equal examples"
    if found.priorities.zeros < found.size:
        even += "" if found.by_tree else "; the policy also draws in its own way"
        _histogram(axes, found.priorities, f"Priorities of all examples\n{even}", "priority", "examples")
    elif losses:
        _histogram(axes, losses[0], f"Losses kept; no priority has been set\n{even}", "loss", "examples")
    else:
        _empty(axes, "Priorities of all examples", "none has been set")


def _whole(of: Distribution) -> bool:
    """Whether the bins are of whole numbers."""
    return not of.log and of.edges[0] % 1 == 0.5


def _histogram(axes: Any, of: Distribution, title: str, xlabel: str, ylabel: str) -> None:
    axes.stairs(of.counts, of.edges, fill=True, color=BARS)
    if of.log:
        axes.set_xscale("log")
        xlabel += f" (log scale; {of.zeros:,} zeros not shown)" if of.zeros else " (log scale)"
    if _whole(of):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel, parse_math=False)
    axes.set_ylabel(ylabel)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def _empty(axes: Any, title: str, words: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.35")
    axes.set_axis_off()
