"""The command ``fastprio``: finds the subcommand, imports only that one, and turns what is missing into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from fastprio._version import __version__

# name -> (module, one line for --help). A module offers add_arguments(parser) and run(args) -> exit status; it is
# imported only when its command is called, so that no command waits for, or fails on, what another one needs.
COMMANDS = {
    "demo": ("fastprio.study.demo", "train on real data with and without priority: live table, plot, JSON"),
    "study": ("fastprio.study.command", "when does loss-based prioritization fail? the paper's table, on real data"),
    "methods": ("fastprio.methods", "list every method: what it keeps of an example, where it acts, its source"),
    "examples": ("fastprio.examples", "list the related systems, or run one: what it does, with and without"),
    "inspect": ("fastprio.inspect", "show what a saved store has learnt, and which examples may be mislabelled"),
    "bench": ("fastprio.bench.throughput", "time draws and updates on this machine against uniform loading"),
}

# What may be missing although fastprio is installed -> the extra that brings it.
EXTRAS = {"rich": "study", "matplotlib": "study", "sklearn": "study"}


def look_here() -> None:
    """From now on modules are also found in the current folder, as they are by ``python -m``."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # to stay: what is found may import later


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: the arguments after the program's name; those of the process if not given.

    Returns:
        The exit status: 0 done; 2 something is missing or misused, said in one line on stderr; 130 interrupted; 141
        nobody reads the output any more.

    Raises:
        SystemExit: from argparse, for --help (0), --version (0) and arguments that it does not understand (2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="fastprio", description="Draw training batches by priority.")
    parser.add_argument("--version", action="version", version=f"fastprio {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    called = next((word for word in words if not word.startswith("-")), None)
    module: Any = None  # parse_args does not return unless the word called is a command, whose module this will be
    try:
        for name, (path, line) in COMMANDS.items():
            command = commands.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
            if name == called:
                module = importlib.import_module(path)
                module.add_arguments(command)
        args = parser.parse_args(words)
        status = int(module.run(args))
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        print(f"fastprio {called}: {missing} is missing: pip install 'fastprio[{EXTRAS[missing]}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 141
    except KeyboardInterrupt:
        return 130
