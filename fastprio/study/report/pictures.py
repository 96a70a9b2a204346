"""The report's pictures. A method has one colour and marker in all of them (Okabe and Ito's, and Tol's)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from fastprio.study.report.measures import late_share, mean
from fastprio.study.report.results import FIRST, GUARD, GUARDED, UNIFORM, Results, Study, plain
from fastprio.study.report.selection import law
from fastprio.study.report.speed import parts
from fastprio.study.training import PARTS

STYLE = {
    "uniform": ("#000000", "o"),
    "random subset": ("#8C8C8C", "s"),
    "SB": ("#D55E00", "^"),
    "VR": ("#CC79A7", "v"),
    "InfoBatch": ("#009E73", "P"),
    "IES": ("#E69F00", "X"),
    "guarded SB": ("#0072B2", "D"),
    "guarded InfoBatch": ("#56B4E9", "d"),
    "guarded uniform": ("#882255", "p"),
    "oracle SB": ("#332288", "*"),
}
WIDE = 4
"""Panels in a line."""
NARROWEST = 7.0
"""Inches, for titles and legends."""


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure of panels, at most four in a line; those without a use are left blank."""
    across = min(count, WIDE)
    down = -(-count // across)
    figure = Figure(figsize=(max(width * across, NARROWEST), height * down + 0.8), layout="constrained", dpi=150)
    grid = figure.subplots(down, across, squeeze=False, **options)
    axes = list(grid.flat)
    for blank in axes[count:]:
        blank.set_visible(False)
    for panel in axes[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, axes[:count]


def _title(study: Results) -> str:
    protocol = study.lines[0]["protocol"]
    return f"{protocol['data']}, {protocol['examples']:,} training examples, {protocol['model']}"


def learning_curves(study: Study, path: Path) -> None:
    """Error against backprops, a panel a column."""
    results = study.runs
    figure, axes = _panels(len(results.columns), 3.3, 2.9)
    figure.suptitle(f"Error while training: {_title(results)}")
    drawn = {}
    for panel, column in zip(axes, results.columns, strict=True):
        highest = 0.0
        for row in (row for row in FIRST if results.of(column, row)):
            curves = [run["curve"] for run in results.of(column, row)]
            at = list(zip(*curves, strict=False))  # of an evaluation, all seeds
            spent = [mean([point["backprops"] for point in points]) / 1000 for points in at]
            found = [[point["error"] for point in points] for points in at]
            colour, marker = STYLE[results.cells[row].method]
            panel.fill_between(spent, [*map(min, found)], [*map(max, found)], color=colour, alpha=0.15, linewidth=0)
            middle = [mean(errors) for errors in found]
            under = row == GUARD  # wider, for where it is the same as the method within it
            size = (
                {"linewidth": 2.8, "markersize": 8, "zorder": 3}
                if under
                else {"linewidth": 1.3, "markersize": 5, "zorder": 4}
            )
            drawn[row] = panel.plot(spent, middle, color=colour, marker=marker, markevery=[-1], **size)[0]
            highest = max([highest, *map(max, found[2:])])
        panel.set_title(column)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        if highest:
            panel.set_ylim(top=1.05 * highest)  # what a model does in its first steps would flatten the rest
        bottom, top = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top > 8 * bottom else (1, 1.2, 1.5, 2, 3, 5, 7)))
        panel.set_xlim(left=0)
        panel.set_xlabel("backprops [thousands]")
    for panel in axes[::WIDE]:
        panel.set_ylabel("error [%], log scale")
    across = min(len(results.columns), WIDE)
    figure.legend(
        [*drawn.values()], [*drawn], loc="outside lower center", ncols=len(drawn) if across > 2 else 3, frameon=False
    )
    figure.savefig(path)


def final_errors(study: Study, path: Path) -> None:
    """A dot for every run, by method, a panel a column."""
    results = study.runs
    rows = results.rows[::-1]  # the first on top
    figure, axes = _panels(len(results.columns), 3.1, 0.6 + 0.24 * len(rows), sharey=True)
    figure.suptitle(f"Final error, a dot a seed: {_title(results)}")
    for panel, column in zip(axes, results.columns, strict=True):
        for place, row in enumerate(rows):
            errors = [plain(run) for run in results.of(column, row)]
            if errors:
                colour, marker = STYLE[results.cells[row].method]
                panel.plot(errors, [place] * len(errors), marker, color=colour, markersize=5, alpha=0.75, linewidth=0)
                panel.plot([mean(errors)], [place], "|", color=colour, markersize=14, markeredgewidth=2)
        uniform = [plain(run) for run in results.of(column, UNIFORM)]
        if uniform:
            panel.axvline(mean(uniform), color=STYLE[UNIFORM][0], linewidth=0.8, linestyle=":")
        panel.set_yticks(range(len(rows)), rows)
        panel.set_title(column)
        panel.set_xlabel("error [%]")
    handles = [
        Line2D([], [], color="#333333", marker="|", markersize=14, markeredgewidth=2, linewidth=0, label="mean"),
        Line2D([], [], color="#333333", linewidth=0.8, linestyle=":", label="uniform's mean"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def altered_share(study: Study, path: Path) -> None:
    """What Selective-Backprop selects late, with and without the guard, beside the law and the data's own share."""
    results, found = study.runs, law(study.runs)
    figure, (panel,) = _panels(1, 3.6 + 0.75 * max(4, len(found)), 3.8)
    figure.suptitle(f"Altered among the back-propagated, in the second half of training\n{_title(results)}")
    wide: dict[str, Any] = {"color": "#333333", "linewidth": 0, "markeredgewidth": 2, "markersize": 26, "marker": "_"}
    for place, record in enumerate(found):
        panel.plot([place], [record["predicted"]], **wide)
        panel.plot([place], [1 - record["right"]], **{**wide, "color": "#B0B0B0"})
        for shift, row in ((-0.12, record["row"]), (0.12, GUARDED + record["row"])):
            late = [late_share(run["curve"]) for run in results.of(record["column"], row)]
            shares = [share for share in late if share is not None]
            if shares:
                colour, marker = STYLE[results.cells[row].method]
                panel.plot([place + shift] * len(shares), shares, marker, color=colour, markersize=6, alpha=0.8)
    panel.set_xticks(range(len(found)), [f"{r['column']}\n{r['row']}" for r in found])
    panel.set_xlim(-0.6, len(found) - 0.4)
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_ylabel("altered share of what was trained on")
    short = {**wide, "markersize": 14}
    handles = [Line2D([], [], **short, label="predicted, SB"), Line2D([], [], **short, label="in the data")]
    handles[1].set_color("#B0B0B0")
    for method in ("SB", "guarded SB"):
        colour, marker = STYLE[method]
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=0, label=f"{method}, a dot a seed"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.savefig(path)


def seconds(study: Study, path: Path) -> None:
    """Stacked bars: where each method's seconds go, a panel a timed column."""
    timed, found = study.timed, parts(study.timed)
    rows = timed.rows[::-1]
    figure, axes = _panels(len(timed.columns), 4.6, 0.6 + 0.3 * len(rows), sharey=True)
    figure.suptitle(f"Where the seconds go (at the end: choosing, in % of them)\n{_title(timed)}")
    # Other colours than the methods', light and dark in turns.
    colours = dict(zip(PARTS, ["#DDDDDD", *colormaps["cividis"]([1.0, 0.7, 0.4, 0.1])], strict=True))
    for panel, column in zip(axes, timed.columns, strict=True):
        for record in (record for record in found if record["column"] == column):
            place, begin = rows.index(record["row"]), 0.0
            for name in PARTS:
                width = record[name] * record["seconds"]
                panel.barh(place, width, left=begin, color=colours[name], edgecolor="white", linewidth=0.4, height=0.75)
                begin += width
            words = f"{100 * record['choosing']:.1f} %"
            panel.annotate(words, (begin, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_title(column)
        panel.set_xlabel("seconds")
        panel.margins(x=0.12)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(PARTS), frameon=False)
    figure.savefig(path)


PICTURES: dict[str, Callable[[Study, Path], None]] = {
    "learning_curves": learning_curves,
    "final_errors": final_errors,
    "altered_share": altered_share,
    "seconds": seconds,
}
"""By the names of their files."""
