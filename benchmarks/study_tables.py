"""The study's tables in docs/study.md and in README."""

from __future__ import annotations

from record import HERE

from fastprio.study.report import claims, document, findings, sections, setting
from fastprio.study.report.results import AT_RANDOM, GUARD, SB, UNIFORM

FOLDER = HERE / "records" / "study"


def study_first() -> str:
    """Mean errors of the few rows that answer the question."""
    return sections.short_table(document.load(FOLDER).runs, (UNIFORM, AT_RANDOM, SB, GUARD))


def study_short() -> str:
    """Those of some more rows."""
    study = document.load(FOLDER)
    made = f"{setting.counted(study)} (`fastprio study run paper-small`), {setting.made_when(study)}."
    return f"{sections.short_table(study.runs)}\n\n`records/study/`: {made}"


def study_claims() -> str:
    """How many of the claims are met, and those that are not."""
    study, text = document.load(FOLDER), []
    for name, bars in (("Set before the runs", claims.BEFORE), ("Added while they were made", claims.ADDED)):
        records = claims.judged(study, bars)
        text.append(f"{name}: {findings.counted(records)}.")
        text.append(findings.claims_table([record for record in records if record["verdict"] == "missed"]))
    return "\n\n".join(filter(None, text))
