"""``fastprio inspect FILE``: what a saved store has learnt, as tables, a picture, and a CSV file."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from fastprio.cli import look_here
from fastprio.inspect import picture, tables
from fastprio.inspect.numbers import inspect
from fastprio.policies.base import find
from fastprio.store import ScoreStore
from fastprio.study.files import StudyError
from fastprio.study.labels import read_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``fastprio inspect``."""
    parser.add_argument("file", metavar="FILE", help="what ScoreStore.save wrote")
    parser.add_argument("--top", type=int, default=20, metavar="K", help="list K likely mislabelled examples (20)")
    parser.add_argument("--labels", metavar="FILE", help="the given labels: .npy, or text with an integer an example")
    parser.add_argument("--policy", metavar="MODULE:CLASS", help="the policy's class, where it has no registered name")
    parser.add_argument("--png", metavar="PATH", help="where the picture goes (FILE with .png in place of its suffix)")
    parser.add_argument("--csv", metavar="PATH", help="also write a row for each example")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 2 after one line on stderr where something is missing, damaged or misused."""
    try:
        inspect_file(
            Path(args.file),
            top=args.top,
            png=None if args.png is None else Path(args.png),
            csv=None if args.csv is None else Path(args.csv),
            labels=None if args.labels is None else Path(args.labels),
            policy=args.policy,
        )
    except StudyError as error:
        print(f"fastprio inspect: {error}", file=sys.stderr)
        return 2
    return 0


def inspect_file(
    path: Path,
    *,
    top: int = 20,
    png: Path | None = None,
    csv: Path | None = None,
    labels: Path | None = None,
    policy: str | None = None,
) -> None:
    """Reads a store, writes the files that are asked for, and prints the tables.

    Args: as the options of the command.

    Raises: StudyError in one line, before anything is written unless it is of the writing. ModuleNotFoundError: rich or
    matplotlib is not installed.
    """
    for name in ("rich", "matplotlib"):
        importlib.import_module(name)
    if top < 1:
        raise StudyError(f"--top {top}: expected at least 1")
    png = path.parent / f"{path.stem}.png" if png is None else png
    outputs = {"--png": png} if csv is None else {"--png": png, "--csv": csv}
    _check_outputs(outputs, [path] if labels is None else [path, labels])
    store = _load(path, policy)
    given = None if labels is None else read_labels(labels, len(store))
    found = inspect(store, top)
    for option, target in outputs.items():
        try:
            if option == "--png":
                picture.draw(target, path.name, found)
            else:
                tables.write_csv(target, store, found, given)
        except OSError as error:
            raise StudyError(f"{option} {target}: cannot be written: {error.strerror or error}") from error
    tables.show(path, found, given)
    print("Written: " + ", ".join(map(str, outputs.values())))


def _check_outputs(outputs: dict[str, Path], inputs: list[Path]) -> None:
    """Nothing that was read, or written before it, is overwritten."""
    taken = [path.resolve() for path in inputs]
    for option, target in outputs.items():
        if target.resolve() in taken:
            raise StudyError(f"{option} {target}: would overwrite another file of this command")
        if not target.parent.is_dir():
            raise StudyError(f"{option} {target}: there is no folder {target.parent}")
        taken.append(target.resolve())


def _load(path: Path, policy: str | None) -> ScoreStore:
    look_here()  # for module:Class
    try:
        if policy is not None:
            find(policy)
    except (ValueError, TypeError) as error:
        raise StudyError(f"--policy {policy}: {error}") from error
    try:
        return ScoreStore.load(path, policy)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise StudyError(str(error)) from error
