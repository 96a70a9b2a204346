"""The tables of the related systems, in README and in docs/systems.md, from what `fastprio examples NAME` writes."""

from __future__ import annotations

import re

from record import Record, made, markdown, read

from fastprio import examples
from fastprio.study.trial import mean, measures, spread

# name -> (system, README's sentence; "[way|measure]" stands for the mean over the seeds).
EFFECTS = {
    "flow": (
        "FLOW",
        "fine-tuned on new classes, accuracy on the old ones is [FLOW|old classes, %] %; [plain|old classes, %] "
        "without, [plain, slower|old classes, %] with a smaller learning rate; on the new [FLOW|new classes, %], "
        "[plain|new classes, %], [plain, slower|new classes, %]",
    ),
    "instance_early_stopping": (
        "Instance-dependent Early Stopping",
        "[IES|backprops] backprops, [everything|backprops] without, at [IES|test accuracy, %] % accuracy, "
        "[everything|test accuracy, %] without, [everything, fewer epochs|test accuracy, %] with as few in fewer "
        "epochs; seconds [IES|seconds], [everything|seconds], [everything, fewer epochs|seconds]",
    ),
    "late_stopping": (
        "Late Stopping",
        "finds [Late Stopping|wrong that are removed, %] % of random labels (precision "
        "[Late Stopping|removed that are wrong, %]); accuracy without them [Late Stopping|test accuracy, %] %, "
        "with them [everything|test accuracy, %], or [everything, half as long|test accuracy, %] in half the epochs",
    ),
    "second_split_forgetting": (
        "Second-Split Forgetting Time",
        "AUROC of wrong labels [forgotten early|AUROC, wrong against all right], against rare examples "
        "[forgotten early|AUROC, wrong against rare]; of learning time [learned late|AUROC, wrong against all right], "
        "[learned late|AUROC, wrong against rare]; of both [both|AUROC, wrong against all right], "
        "[both|AUROC, wrong against rare]",
    ),
    "multiplicative_reweighting": (
        "Multiplicative Reweighting",
        "with 40 % random labels [reweighted|test accuracy, %] % accuracy; [equal weights|test accuracy, %] without, "
        "[equal weights, a third as long|test accuracy, %] if trained a third as long",
    ),
    "on_the_fly_denoising": (
        "On-the-fly Data Denoising",
        "with 40 % random labels [ODD|test accuracy, %] % accuracy; [everything|test accuracy, %] without, "
        "[everything, stopped early|test accuracy, %] stopped early; [ODD|removed that are wrong, %] % of what it "
        "removes is wrong",
    ),
    "task_robust": (
        "Task-robust pre-training, GroupDRO",
        "accuracy on the worst task [GroupDRO|worst task, %] %, [average|worst task, %] without; "
        "[tasks alike|worst task, %] with all tasks drawn alike",
    ),
    "class_incremental": (
        "Class-incremental replay, data-free",
        "accuracy on the old classes [the same, weights alike|old classes, %] % with forty inverted images a class, "
        "[exemplars|old classes, %] with forty kept ones, [nothing|old classes, %] with none; on the new "
        "[the same, weights alike|new classes, %], [exemplars|new classes, %], [nothing|new classes, %]",
    ),
    "penalizing_change": (
        "Tuning while penalizing change",
        "where a bias misled, [stopped, l1|others with the corner, %] % right, [biased|others with the corner, %] "
        "before; elsewhere [stopped, l1|no corner, %], [biased|no corner, %] before, [tuned, stopped|no corner, %] "
        "without the penalty",
    ),
}


def systems_first() -> str:
    """A line for each: what it does, with and without."""
    rows = [["system", "measured, with and without"]]
    for name, (system, sentence) in EFFECTS.items():
        if record := read(f"systems/{name}"):
            rows.append([f"[{system}](examples/systems/{name}.py)", _said(sentence, record)])
    return markdown(rows).replace("---:", "---")


def _said(sentence: str, record: Record) -> str:
    def value(found: re.Match[str]) -> str:
        number = mean(record["results"], found[1], found[2])
        return f"{number:,.0f}" if number >= 1000 else f"{number:.{2 if 'AUROC' in found[2] else 1}f}"

    return re.sub(r"\[([^|\]]+)\|([^\]]+)\]", value, sentence)


def systems() -> str:
    """All that was measured, a table each."""
    parts = []
    for name, path in examples.files().items():
        if record := read(f"systems/{name}"):
            results = record["results"]
            rows = [["", *measures(results)]]
            rows += [[way, *(spread(results, way, what) for what in measures(results))] for way in results]
            title = f"### {name}\n\n[{examples.about(path)}](../examples/systems/{path.name})"
            seconds = f"{len(record['seeds'])} seeds in {record['seconds']:.0f} s. "
            parts += [title, markdown(rows), seconds + made(f"systems/{name}", record)]
    return "\n\n".join(parts)
