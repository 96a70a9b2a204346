"""The report's section on what was run, and what of the preset is missing."""

from __future__ import annotations

from collections.abc import Sequence

from fastprio.study.grid import cell_of
from fastprio.study.methods import METHODS
from fastprio.study.report.results import Record, Results, Study
from fastprio.study.report.sections import Section
from fastprio.study.report.tables import markdown, span


def setting(study: Study) -> Section:
    """The protocol, machines, versions, dates, methods, and how much of the preset is there."""
    lines = study.runs.lines
    protocol = lines[0]["protocol"]
    timed = study.timed.lines
    facts = {
        "runs": counted(study),
        "seeds": _seeds(study.runs),
        "timed in turns": f"{len(timed)} runs, {'; '.join(_each(timed, 'machine'))}" if timed else "none",
        "made": made_when(study),
        "classes": str(study.runs.classes),
        **{name: str(value) for name, value in protocol.items()},
    }
    held = "test images" if protocol["evaluate"] == "test" else "images held out of the training set"
    intro = (
        f"Every run trains the same model ({protocol['model']}) on {protocol['examples']:,} examples of "
        f"{protocol['data']} (fewer where classes are made rare), spoilt as the column says, and is measured on clean "
        f"{held}. Methods differ in which examples they train on. In one column a seed fixes the examples, what is "
        "done to them, and the model's first parameters, for all methods alike. Uniform training has "
        f"{protocol['epochs']} backprops for each of its examples; “33 %” is a budget of as much of that. VR, "
        "InfoBatch and IES train for as many epochs instead, on what they choose of them; for VR “33 %” is what it "
        "takes of a pool, where it chooses at all."
    )
    used = {study.runs.cells[row].method: None for row in study.runs.cells}
    methods = markdown(["method", "what it is"], [[name, METHODS[name].what] for name in used], left=2)
    made = {cell_of(line).row: _made_of(line["method"]) for line in reversed(lines)}
    arguments = markdown(["row", "policy; selector"], [[row, made[row]] for row in study.runs.rows], left=2)
    levels = study.runs.level.items()
    did = [[column, _SPOILT.get(kind, _GIVEN).format(f"{100 * level:g} %")] for column, (kind, level) in levels]
    spoilt = markdown(
        ["column", "training examples"], sorted(did, key=lambda row: study.runs.columns.index(row[0])), left=2
    )
    table = markdown(["setting", "value"], [*facts.items()], left=2)
    parts = intro, spoilt, methods, arguments, table, _diverged(study.runs), _missing(study.runs)
    return Section("What was run", "\n\n".join(filter(None, parts)))


_SPOILT = {
    "clean": "as they are",
    "labels": "{} have a label at random, which may be the right one",
    "symmetric": "{} have another label, at random",
    "pair": "{} have the next class's label",
    "shuffle": "{} have their pixels in another order, the same for all images",
    "gauss": "{} are Gaussian noise of the image's own mean and variance; the label is kept",
    "rare": "{} of those of the last three classes are taken away; the rest are as they are",
}
_GIVEN = "labels of a file"


def _made_of(method: Record) -> str:
    """Its policy and its selector with their arguments, but for seeds and what is not given."""
    return "; ".join(
        f"{name}({', '.join(f'{k}={v!r}' for k, v in config.items() if k != 'seed' and v is not None)})"
        for part in ("policy", "selector")
        for name, config in (method[part] or {}).items()
    )


def _diverged(results: Results) -> str:
    cells = [cell_of(line) for line in results.lines if line["result"]["diverged"]]
    listed = "; ".join(f"{cell.column}, {cell.row}, seed {cell.seed}" for cell in cells)
    return f"Diverged (a loss was not finite, and the run ended there, measured as it was): {listed}." if cells else ""


def made_when(study: Study) -> str:
    """Dates, machines and versions of all runs."""
    lines = study.runs.lines
    dates = sorted({line["date"].partition("T")[0] for line in lines})
    versions = dict.fromkeys(", ".join(f"{k} {v}".strip() for k, v in line["versions"].items()) for line in lines)
    return "; ".join([" to ".join(dict.fromkeys([dates[0], dates[-1]])), *_each(lines, "machine"), *versions])


def _each(lines: Sequence[Record], name: str) -> list[str]:
    return list(dict.fromkeys(line[name] for line in lines))


def counted(study: Study) -> str:
    """How many runs there are, of how many of the preset."""
    lines = study.runs.lines
    preset = study.runs.preset
    if preset is None:
        return f"{len(lines)}"
    wanted = preset.cells()
    done = len(set(wanted) & {cell_of(line) for line in lines})
    others = f", and {len(lines) - done} others" if len(lines) > done else ""
    return f"{done} of the {len(wanted)} of the preset {preset.protocol.name}{others}"


def _seeds(results: Results) -> str:
    seeds = sorted({line["cell"]["seed"] for line in results.lines})
    counts = [len(results.seeds(column, row)) for column, row in results.pairs()]
    names = ", ".join(str(seed) for seed in seeds)
    return f"{names}; {span(counts)} of each cell" if counts else names


def _missing(results: Results) -> str:
    """The preset's runs that are not there, by column."""
    preset = results.preset
    absent: dict[str, dict[str, list[int]]] = {}
    for cell in [] if preset is None else preset.cells():
        if results.get(cell.column, cell.row, cell.seed) is None:
            absent.setdefault(cell.column, {}).setdefault(cell.row, []).append(cell.seed)
    if not absent:
        return ""
    listed = []
    for column, rows in absent.items():
        seeds = [f"{row} (seed {', '.join(map(str, missing))})" for row, missing in rows.items()]
        listed.append(f"- {column}: {'; '.join(seeds)}")
    return "Missing of the preset, and so from all that follows:\n\n" + "\n".join(listed)
