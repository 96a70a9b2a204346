"""``fastprio examples``: lists and runs the related systems, a file each: what each does, with and without."""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastprio.cli import look_here
from fastprio.study import trial

HERE = Path(__file__).parent


def folder() -> Path:
    """Where the files are: beside the package in an installation, else in the sources."""
    installed = HERE / "systems"
    return installed if installed.is_dir() else HERE.parent / "examples" / "systems"


def about(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def files() -> dict[str, Path]:
    """By name."""
    return {path.stem: path for path in sorted(folder().glob("*.py"))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("name", nargs="?", help="which to run; all are listed without it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the example: see NAME --help")


def run(args: argparse.Namespace) -> int:
    """Lists them; or runs one, and returns its exit status."""
    found = files()
    if args.name is None:
        table = Table("name", "what it shows", title=str(folder()))
        for name, path in found.items():
            table.add_row(name, about(path))
        Console().print(table)
        return 0
    if args.name not in found:
        print(f"fastprio examples: {args.name}: expected one of {', '.join(found)}", file=sys.stderr)
        return 2
    look_here()  # for module:callable
    example = runpy.run_path(str(found[args.name]))
    return trial.main(args.name, example["__doc__"], example["WAYS"], example["run"], args.arguments)
