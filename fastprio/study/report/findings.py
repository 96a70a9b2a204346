"""The report's sections on which claims hold, what was selected, what the guards saw, and learning rates."""

from __future__ import annotations

from fastprio.study.report import selection
from fastprio.study.report.claims import ADDED, BEFORE, PURPOSE, judged
from fastprio.study.report.results import Record, Results, Study
from fastprio.study.report.sections import Section
from fastprio.study.report.tables import NONE, markdown, number, percent, times

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
    head = [*("column", "method", "c", "beta", "altered, predicted", "measured", "second half", "second half, guarded")]
    head += ["c^(beta+1)", "border", "right label survives", "accuracy", "uniform's", "error over uniform's", "seeds"]
    rows = [
        [
            *(r["column"], r["row"], number(r["right"], ".3f"), number(r["beta"], ".3g")),
            *(percent(r[name]) for name in ("predicted", "measured", "late", "guarded late")),
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
        "NoiseGuard looks at the losses once the model has learnt a little. “clean”: the method within it trains as if "
        "it were alone. “unsafe”: there is noise, and every epoch is uniform. “mislabeled”: the same, and what the "
        "model contradicts is set aside. tau = sqrt(1 + CV²) of the losses by which it decided (CV: deviation "
        "over mean) is high where a few examples are much harder than the rest, and low where very many are. AUROC: "
        "how well the smoothed loss orders altered before unaltered examples (0.5: not at all). Precision: the altered "
        "share of what was set aside in the end; recall: the share of the altered that was. Set aside: the share of "
        "all examples, and of the unaltered ones, wrongly, that were, in the epoch in which it was the largest."
    )
    head = ["column", "method", "seed", "verdict", "tau", "AUROC", "precision", "recall", "set aside", "of unaltered"]
    rows = [
        [
            *(r["column"], r["row"], str(r["seed"]), str(r["verdict"]), number(r["tau"] or None)),
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
    before, added = judged(study, BEFORE), judged(study, ADDED)
    found = [record for record in before + added if record["verdict"] != "open"]
    files = {"claims": [{**r, "set": name} for name, group in (("before", before), ("added", added)) for r in group]}
    if not found:
        return Section("Claims", "Missing: the runs that the claims are about.", files)
    preset = study.runs.preset
    other = "" if preset and preset.protocol.name == PURPOSE else f"This is another study than {PURPOSE}. "
    parts = [
        f"What was expected of the methods on {PURPOSE}, against what was measured: means over seeds with 90 % "
        "intervals (Student's t), and the worst seed; of choosing, the worst run (marked under “Where the seconds "
        f"go”). Met or missed goes by the mean alone. {other}Differences are in points of error. What a guard set "
        "aside is the most of any epoch. Fewer runs, or pairs of them, than a claim is to rest on are counted as "
        "“3 of 6”.",
        f"Set before any of its runs was made: {counted(before)}.",
        claims_table(before),
        f"Added while they were made, of more rows and columns: {counted(added)}. That VR switches itself off instead "
        "of collapsing is told by two numbers, which are this report's own choice; shuffled images have right labels, "
        "so nothing is said of them there.",
        claims_table(added),
        _unjudged(before + added),
    ]
    return Section("Claims", "\n\n".join(filter(None, parts)), files)


def _unjudged(records: list[Record]) -> str:
    columns: dict[str, list[str]] = {}
    for record in records:
        if record["verdict"] == "open":
            claim = f"{record['claim']} {record['bar']} {record['unit']}".rstrip()
            columns.setdefault(claim, []).append(record["column"])
    listed = "\n".join(f"- {claim}: {', '.join(names)}" for claim, names in columns.items())
    return f"Open, for want of runs (or of a guard that has decided):\n\n{listed}" if columns else ""


def claims_table(records: list[Record]) -> str:
    """Those that were judged."""
    head = "claim", "column", "bar", "measured", "90 % interval", "worst", "runs or pairs", "verdict"
    rows = [_judged(record) for record in records if record["verdict"] != "open"]
    return markdown(head, rows, left=3) if rows else ""


def counted(records: list[Record]) -> str:
    """As in "40 met, 2 missed, 1 open": of the claims, and how many of the judged have fewer runs than they need."""
    verdicts = [record["verdict"] for record in records]
    counts = [f"{verdicts.count(name)} {name}" for name in ("met", "missed", "open") if name in verdicts]
    judged = [record for record in records if record["verdict"] != "open"]
    few = sum(record["runs"] < record["wanted"] for record in judged)
    note = f" ({few} of the {len(judged)} judged with fewer runs than they are to rest on)" if few else ""
    return ", ".join(counts) + note


def _judged(record: Record) -> list[str]:
    bar, runs, wanted = f"{record['bar']} {record['unit']}".rstrip(), record["runs"], record["wanted"]
    ends = NONE if record["low"] is None else f"{_three(record['low'])} to {_three(record['high'])}"
    return [
        *(record["claim"], record["column"], bar, _three(record["measured"]), ends, _three(record["worst"])),
        *(f"{runs}" if runs >= wanted else f"{runs} of {wanted}", f"**{record['verdict']}**"),
    ]


def _three(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"
