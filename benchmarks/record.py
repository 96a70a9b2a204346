"""Records, and what every table made from them has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Record = dict[str, Any]


def read(name: str) -> Record:
    """A record, {} where there is none yet."""
    path = HERE / "records" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def markdown(rows: list[list[str]]) -> str:
    """A table, the first row its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    ruled = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruled, *body))


def made(name: str, record: Record) -> str:
    """Where, with what and when a record was made."""
    versions = ", ".join(f"{what} {version}" for what, version in record["versions"].items())
    date = record["date"].partition("T")[0]
    return f"`records/{name}.json`: `{record['command']}`, {date}; {record['machine']}; {versions}."
