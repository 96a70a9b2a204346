"""The report's sections on what was run, what was selected, what the guards saw, and which claims hold."""

from __future__ import annotations

from fastprio.study.grid import cell_of
from fastprio.study.methods import METHODS
from fastprio.study.presets import PRESETS
from fastprio.study.report import selection
from fastprio.study.report.claims import judged
from fastprio.study.report.results import Record, Results, Study
from fastprio.study.report.sections import Section
from fastprio.study.report.tables import NONE, markdown, number, percent, span, times


def setting(study: Study) -> Section:
    """The protocol, machines, versions, dates, methods, and how much of the preset is there."""
    lines = study.runs.lines
    protocol = lines[0]["protocol"]
    dates = sorted(line["date"] for line in lines)
    machines = dict.fromkeys(line["machine"] for line in lines)
    versions = dict.fromkeys(" ".join(f"{k} {v}".strip() for k, v in line["versions"].items()) for line in lines)
    timed = study.timed.lines
    facts = {
        "runs": _count(study),
        "seeds": _seeds(study.runs),
        "timed in turns": f"{len(timed)} runs, {timed[0]['machine']}" if timed else "none",
        "dates": f"{dates[0]} to {dates[-1]}",
        "machine": "; ".join(machines),
        "versions": "; ".join(versions),
        "classes": str(study.runs.classes),
        **{name: str(value) for name, value in protocol.items()},
    }
    held = "test images" if protocol["evaluate"] == "test" else "images held out of the training set"
    intro = (
        f"Every run trains the same model ({protocol['model']}) on {protocol['examples']:,} examples of "
        f"{protocol['data']}, of which a share was spoilt on purpose, and is measured on clean {held}. Methods differ "
        "in which examples they train on. In one column a seed fixes the examples, what is done to them, and the "
        "model's first parameters, for all methods alike. Uniform training has "
        f"{protocol['epochs'] * protocol['examples']:,} backprops (examples back-propagated, repeats counted); “33 %” "
        "is a budget of as much of that. VR, InfoBatch and IES train for uniform's epochs instead, on what they choose "
        "of them; for VR “33 %” is what it takes of a pool, where it chooses at all."
    )
    used = {study.runs.cells[row].method: None for row in study.runs.cells}
    methods = markdown(["method", "what it is"], [[name, METHODS[name].what] for name in used], left=2)
    made = {cell_of(line).row: _made_of(line["method"]) for line in reversed(lines)}
    arguments = markdown(["row", "policy; selector"], [[row, made[row]] for row in study.runs.rows], left=2)
    kinds = {kind: _SPOILT[kind] for kind, _ in study.runs.level.values() if kind in _SPOILT}
    spoilt = markdown(["column", "what was done to so many % of the training examples"], [*kinds.items()], left=2)
    table = markdown(["setting", "value"], [*facts.items()], left=2)
    parts = intro, spoilt, methods, arguments, table, _diverged(study.runs), _missing(study.runs)
    return Section("What was run", "\n\n".join(filter(None, parts)))


_SPOILT = {
    "clean": "nothing",
    "labels": "a label at random, which may be the right one",
    "symmetric": "another label at random",
    "pair": "the next class's label",
    "shuffle": "pixels in another order, the same for all images",
    "gauss": "Gaussian noise of the image's own mean and variance in its place; the label is kept",
    "rare": "kept, of the last three classes; the others of these were taken away, and nothing else",
}


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


def _count(study: Study) -> str:
    lines = study.runs.lines
    preset = PRESETS.get(lines[0]["protocol"]["name"])
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
    preset = PRESETS.get(results.lines[0]["protocol"]["name"])
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


_YES = {None: NONE, True: "yes", False: "no"}


def law(results: Results) -> Section:
    """The collapse law."""
    found, title = selection.law(results), "What is selected: the collapse law"
    if not found:
        return Section(title, "Missing: Selective-Backprop on data with altered examples.")
    intro = (
        "Selective-Backprop takes an example with probability F(loss)^beta, F being the distribution of losses and "
        "beta = 1 / budget - 1. If altered examples keep the highest losses and a share c is unaltered, then only "
        "c^(beta+1) of what is selected is. With wrong labels, the right one is still the most frequent if that is "
        "above a border: 1 / classes where wrong ones are spread over all others, 1 / 2 where they are all the same. "
        "Below the border the model has to get it wrong; above it the margin is less than the data's, which can be "
        "enough for errors. Nothing is said where labels are right. Measured: the altered share of all that was "
        "back-propagated, with the first epoch, which takes everything; and of the second half of the run, when the "
        "model can tell."
    )
    head = [*("column", "method", "c", "beta", "altered, predicted", "measured", "second half", "with the guard")]
    head += ["c^(beta+1)", "border", "right label survives", "accuracy", "uniform's", "error over uniform's", "seeds"]
    rows = [
        [
            *(r["column"], r["row"], number(r["right"], ".3f"), number(r["beta"], ".3g")),
            *(percent(r[name]) for name in ("predicted", "measured", "late", "guarded measured")),
            *(number(r["left"], ".3f"), number(r["border"], ".3g"), _YES[r["survives"]]),
            *(number(r["accuracy"]), number(r["uniform_accuracy"]), times(r["relative"]), str(r["seeds"])),
        ]
        for r in found
    ]
    return Section(title, f"{intro}\n\n{markdown(head, rows, left=2)}", {"collapse_law": found})


def guards(results: Results) -> Section:
    """What the guards saw."""
    found, title = selection.guards(results), "What the guard saw"
    if not found:
        return Section(title, "Missing: runs with a guard.")
    intro = (
        "NoiseGuard looks at the losses once the model has learnt a little. tau = sqrt(1 + CV²) of them (CV: deviation "
        "over mean) is high where a few examples are much harder than the rest, and low where very many are. AUROC: "
        "how well the smoothed loss orders altered before unaltered examples (0.5: not at all). Precision: the altered "
        "share of what was set aside in the end; recall: the share of the altered that was. Set aside: the share of "
        "all examples, and of the unaltered ones, wrongly, that were, in the epoch in which it was the largest."
    )
    head = ["column", "method", "seed", "verdict", "tau", "AUROC", "precision", "recall", "set aside", "of unaltered"]
    rows = [
        [
            *(r["column"], r["row"], str(r["seed"]), str(r["verdict"]), number(r["tau"])),
            *(number(r[name], ".3f") for name in ("auroc", "precision", "recall")),
            *(percent(r[name], 1) for name in ("aside_all", "aside_unaltered")),
        ]
        for r in found
    ]
    return Section(title, f"{intro}\n\n{markdown(head, rows, left=2)}", {"guards": found})


def rates(results: Results) -> Section:
    """Other learning rates."""
    found, title = selection.rates(results), "Other learning rates"
    if not found:
        return Section(title, "Missing: runs with half and twice the learning rate.")
    head = ["column", "method", "error", "least", "most", "seeds"]
    rows = [[r["column"], r["row"], *(number(r[k]) for k in ("error", "low", "high")), str(r["seeds"])] for r in found]
    intro = (
        "All methods share one learning rate. Here is the mean final error (in %, with the least and the most of the "
        "seeds) with half of it and twice of it, to see whether that rate favours one of them."
    )
    return Section(title, f"{intro}\n\n{markdown(head, rows, left=2)}", {"learning_rates": found})


def bars(study: Study) -> Section:
    """Which claims hold."""
    every: list[Record] = judged(study)
    found = [record for record in every if record["verdict"] != "open"]
    unjudged: dict[str, list[str]] = {}
    for record in every:
        if record["verdict"] == "open":
            claim = f"{record['claim']} {record['bar']} {record['unit']}".rstrip()
            unjudged.setdefault(claim, []).append(record["column"])
    parts = ["Missing: the runs that the claims are about."]
    if found:
        met = sum(record["verdict"] == "met" for record in found)
        parts = [
            f"What is expected of the methods, against what was measured: {met} of {len(found)} met. Differences are "
            "in points of error, means over seeds; their intervals are under “Every seed”. What a guard set aside is "
            "the most of any epoch. Fewer runs or pairs of runs than a claim is to rest on are counted as “3 of 6”.",
            markdown(_CLAIM, [*map(_judged, found)], left=3),
        ]
        if unjudged:
            listed = "\n".join(f"- {claim}: {', '.join(columns)}" for claim, columns in unjudged.items())
            parts.append(f"Open, for want of runs (or of a guard that has decided):\n\n{listed}")
    return Section("Claims", "\n\n".join(parts), {"claims": every})


_CLAIM = "claim", "column", "bar", "measured", "runs or pairs", "verdict"


def _judged(record: Record) -> list[str]:
    bar, measured = f"{record['bar']} {record['unit']}".rstrip(), round(record["measured"], 3) + 0.0
    runs, wanted = record["runs"], record["wanted"]
    return [
        *(record["claim"], record["column"], bar, f"{measured:.3f} {record['unit']}".rstrip()),
        *(f"{runs}" if runs >= wanted else f"{runs} of {wanted}", f"**{record['verdict']}**"),
    ]
