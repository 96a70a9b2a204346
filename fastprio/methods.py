"""``fastprio methods``: every method that has a name: its source, what it keeps, where it acts; and docs/methods.md."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastprio import policies, selectors

INTRODUCTION = """\
# Methods

Every policy (it decides before loading: `policy="name"` wherever one is asked for) and every selector (it decides after
the forward pass), from its own docstring, and the functions that it has beside those of every policy or selector. This
page is the output of `fastprio methods --markdown`.

* **Keeps**: bytes an example in the store, beside the tree's 4.53 and two bits.
* **Acts**: on which examples an epoch has, on the next draw, on the weight of a loss, or on what is back-propagated.
* **Further forward passes**: beside those of training.

"""


class Row(NamedTuple):
    """One method, as the table shows it. ``nbytes``: of its columns, an example; None where it cannot be made."""

    name: str
    of: type[Any]
    source: str
    nbytes: float | None
    acts: str
    forwards: str


def rows() -> list[Row]:
    """All methods that have a name, policies first."""
    return [_row(name, of) for known in (policies, selectors) for name, of in known.registered().items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``fastprio methods``."""
    parser.add_argument("--markdown", action="store_true", help="the whole page with every method's description")


def run(args: argparse.Namespace) -> int:
    """The command."""
    print(page() if args.markdown else table())
    return 0


def table() -> str:
    """The table in plain text."""
    head = ("name", "class", "keeps", "acts", "further forward passes", "source")
    lines = [head] + [
        (row.name, row.of.__name__, _bytes(row.nbytes), row.acts, row.forwards, row.source) for row in rows()
    ]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head) - 1)]
    return "\n".join(
        "  ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=False)] + [line[-1]]) for line in lines
    )


def page() -> str:
    """docs/methods.md: the table, and every docstring, with those of a method's own functions."""
    found = rows()
    parts = [
        INTRODUCTION,
        "| name | class | keeps | acts | further forward passes | source |\n|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = (
            f"`{row.name}`",
            f"[{row.of.__name__}](#{_heading(row.of).lower().replace(' ', '-')})",
            _bytes(row.nbytes),
        )
        parts.append("| " + " | ".join((*cells, row.acts, row.forwards, row.source)) + " |")
    for row in found:
        parts.append(f"\n## {_heading(row.of)}\n\n`{row.name}`, a {_kind(row.of)}: `{_signature(row.of)}`\n")
        parts.append(_as_markdown(inspect.cleandoc(row.of.__doc__ or "")))
        for name, function in own_functions(row.of):
            text = _as_markdown(inspect.cleandoc(function.__doc__ or ""))
            parts.append(f"\n**{name}{_arguments(function)}**\n\n{text}".rstrip())
    return "\n".join(parts)


def _kind(of: type[Any]) -> str:
    return "policy" if issubclass(of, policies.Policy) else "selector"


def _heading(of: type[Any]) -> str:
    """The class's name; with its kind where both protocols have one of that name."""
    both = {found.__name__ for found in policies.registered().values()} & {
        found.__name__ for found in selectors.registered().values()
    }
    return f"{of.__name__} {_kind(of)}" if of.__name__ in both else of.__name__


def _row(name: str, of: type[Any]) -> Row:
    source = re.search(r"^Source:\s*(.+?)(;|\.?\n\s*\n|\.?\s*\Z)", inspect.cleandoc(of.__doc__ or ""), re.M | re.S)
    words = " ".join(source[1].split()) if source else ""
    return Row(name, of, words, keeps(of), of.acts, of.forwards)


def own_functions(of: type[Any]) -> list[tuple[str, Callable[..., Any]]]:
    """A method's public functions by name, inherited ones too, but for those that every policy or selector has."""
    base = policies.Policy if issubclass(of, policies.Policy) else selectors.Selector
    functions = inspect.getmembers(of, inspect.isfunction)
    return [(name, found) for name, found in functions if not name.startswith("_") and not hasattr(base, name)]


def keeps(of: type[Any]) -> float | None:
    """Bytes an example of a method's columns; None where it cannot be made."""
    try:
        made = of(**of.example)
    except Exception:  # one's own may need arguments that it gives no example of, or a file, and raise anything at all
        return None
    return sum(map(_size_of, made.columns.values()))


def _size_of(kind: str | tuple[str, int]) -> float:
    if kind == "bit":
        return 1 / 8
    dtype, width = (kind, 1) if isinstance(kind, str) else kind
    return float(np.dtype(dtype).itemsize * width)


def _bytes(n: float | None) -> str:
    return "?" if n is None else f"{n:g} B"


def _signature(of: type[Any]) -> str:
    return f"{of.__name__}{_arguments(of.__init__)}"


def _arguments(function: Callable[..., Any]) -> str:
    """Without ``self``, and without annotations."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))


def _as_markdown(text: str) -> str:
    """Sections such as "Args:" as lists; what follows "::" as code."""
    out: list[str] = []
    section = code = False
    for line in text.splitlines():
        if code and (line.startswith("    ") or not line):
            if line or out[-1] != "```python":  # code begins at once
                out.append(line[4:])
            continue
        if code:
            code = False
            while not out[-1]:
                out.pop()
            out += ["```", ""]
        item = re.match(r"    ([a-z_][\w, ]*): (.*)", line) if section else None
        if line == "::":
            code = True
            out.append("```python")
            continue
        if re.fullmatch(r"[A-Z]\w+:", line):
            section = True
            out += [f"**{line}**", ""]
        elif item:
            out.append(f"* `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            out.append("  " + line.strip())
        else:
            section = section and not line
            out.append(line)
    return re.sub(r"(?<!`)``(?!`)", "`", "\n".join([*out, "```"] if code else out))
