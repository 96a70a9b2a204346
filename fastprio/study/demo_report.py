"""What the demo shows and leaves behind: live progress, the closing table, a PNG and a JSON file."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastprio.bench import stamp

if TYPE_CHECKING:
    from rich.table import Table

Epochs = list[dict[str, Any]]
"""What was measured of an arm, one dictionary an epoch, as ``fastprio.study.demo.finish_epoch`` makes them."""

# Two colours of Okabe and Ito's palette, told apart by any eye and in grey; the markers differ as well.
STYLE = {
    "uniform": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "prioritized": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}


def require() -> None:
    """Imports what a report needs, so that a missing package is found before the training, not after it.

    Raises:
        ModuleNotFoundError: rich or matplotlib is not installed.
    """
    for name in ("rich", "matplotlib"):
        importlib.import_module(name)


class Display:
    """Progress while training: a live table on a terminal, plain lines elsewhere. A context manager.

    Args:
        epochs: how many epochs each arm will have.
    """

    def __init__(self, epochs: int) -> None:
        from rich.console import Console

        self.epochs = epochs
        self.console = Console()
        self.curves: dict[str, Epochs] = {name: [] for name in STYLE}
        self.at: tuple[int, int, int] | None = None
        self.live: Any = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            from rich.live import Live

            # Drawn by a thread, four times a second in both arms alike.
            self.live = Live(self, console=self.console, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.at = None
        if self.live is not None:
            self.live.stop()

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(box=None, caption_justify="left")
        for head in ("epoch", "uniform", "seconds", "prioritized", "seconds", "median priority"):
            table.add_column(head, justify="right")
        for number in range(max(len(curve) for curve in self.curves.values())):
            row = [str(number + 1)]
            for curve in self.curves.values():
                done = curve[number] if number < len(curve) else None
                row += [f"{100 * done['test_accuracy']:.2f} %", f"{done['train_seconds']:.1f}"] if done else ["", ""]
            moved = self.curves["prioritized"][number:]
            row.append(f"{moved[0]['priorities']['50']:.3g}" if moved else "")
            table.add_row(*row)
        if self.at is not None:
            epoch, batch, batches = self.at
            table.caption = f"epoch {epoch + 1} of {self.epochs}, batch {batch} of {batches}"
        return table

    def say(self, line: str) -> None:
        """Prints a line (above the live table)."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def tick(self, epoch: int, batch: int, batches: int) -> None:
        """Notes where training is: the epoch from 0, the batch from 1. Cheap, for it runs in every batch."""
        self.at = epoch, batch, batches

    def epoch(self, name: str, done: dict[str, Any]) -> None:
        """Shows a finished epoch."""
        self.curves[name].append(done)
        if self.live is None:
            accuracy, seconds = 100 * done["test_accuracy"], done["train_seconds"]
            self.say(
                f"epoch {done['epoch']} of {self.epochs}  {name:<11}  test accuracy {accuracy:5.2f} %  {seconds:7.1f} s"
            )
            sys.stdout.flush()


def rows(curves: dict[str, Epochs]) -> list[dict[str, Any]]:
    """The closing table: where every arm stood after the last epoch that all of them finished, at least one.

    choosing_us_per_batch: microseconds. choosing_share: of the training seconds, in [0, 1].
    """
    table = []
    common = min(len(epochs) for epochs in curves.values())
    for name, epochs in curves.items():
        last = epochs[common - 1]
        choosing = last["draw_seconds"] + last["reduce_seconds"]
        table.append(
            {
                "arm": name,
                "epochs": last["epoch"],
                "test_accuracy": last["test_accuracy"],
                "forwards": last["forwards"],
                "backprops": last["backprops"],
                "train_seconds": last["train_seconds"],
                "choosing_us_per_batch": 1e6 * choosing / max(1, last["batches"]),
                "choosing_share": choosing / last["train_seconds"],
            }
        )
    return table


def closing(curves: dict[str, Epochs], data: dict[str, Any], seed: int, finished: bool) -> str:
    """One sentence that says what was measured, over the epochs that both arms finished."""
    uniform, prioritized = rows(curves)
    epochs = uniform["epochs"]
    a, b = uniform["test_accuracy"], prioritized["test_accuracy"]
    error = 100 * math.sqrt((a * (1 - a) + b * (1 - b)) / data["test"])
    share = prioritized["backprops"] / uniform["backprops"]
    less = "" if share == 1 else f" with {100 * share:.0f} % of the backprops"
    start = f"{'After' if finished else 'Interrupted: after'} {epochs} epoch{'s' * (epochs > 1)}"
    return (
        f"{start} of {data['train']:,} examples of {data['name']}, batches drawn by priority gave {100 * b:.2f} % test "
        f"accuracy{less} against {100 * a:.2f} % uniform ({100 * (b - a):+.2f} points; one run each, seed {seed}; "
        f"{data['test']:,} test images alone leave a standard error of {error:.2f}), and choosing took "
        f"{prioritized['choosing_us_per_batch']:.0f} us a batch against {uniform['choosing_us_per_batch']:.0f} us, "
        f"{100 * prioritized['choosing_share']:.2f} % of the training time "
        f"against {100 * uniform['choosing_share']:.2f} %."
    )


def publish(
    folder: Path, config: dict[str, Any], data: dict[str, Any], curves: dict[str, Epochs], finished: bool
) -> None:
    """Prints table and closing sentence, and writes ``demo.png`` and ``demo.json`` into ``folder``.

    Args:
        folder: an existing folder. config: settings, plain values. data: name, train, test, classes.
        curves: arm -> its epochs. finished: False if the run was interrupted.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = rows(curves)
    sentence = closing(curves, data, config["seed"], finished)
    result = {
        **stamp("fastprio demo"),
        "config": config,
        "data": data,
        "finished": finished,
        "arms": {name: {"epochs": epochs} for name, epochs in curves.items()},
        "table": table,
        "closing": sentence,
    }
    (folder / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(folder / "demo.png", data, config, curves)

    shown = Table(box=SIMPLE, pad_edge=False)  # without vertical lines it fits 80 columns
    shown.add_column("batches\ndrawn", no_wrap=True)
    for head in ("test accuracy", "forwards", "backprops", "train seconds", "choosing us/batch", "choosing share"):
        shown.add_column(head.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in table:
        shown.add_row(
            row["arm"],
            f"{100 * row['test_accuracy']:.2f} %",
            f"{row['forwards']:,}",
            f"{row['backprops']:,}",
            f"{row['train_seconds']:.1f}",
            f"{row['choosing_us_per_batch']:.1f}",
            f"{100 * row['choosing_share']:.2f} %",
        )
    console = Console()
    console.print(shown)
    console.print(sentence, highlight=False)
    console.print(f"Written: {folder / 'demo.png'}, {folder / 'demo.json'}", highlight=False, soft_wrap=True)


def plot(path: Path, data: dict[str, Any], config: dict[str, Any], curves: dict[str, Epochs]) -> None:
    """Draws accuracy against training seconds, and how the priorities moved, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=150)
    title = f"{data['name']}: {data['train']:,} examples, batches of {config['batch_size']}, seed {config['seed']}"
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))

    for name, epochs in curves.items():
        if epochs:
            seconds = [done["train_seconds"] for done in epochs]
            accuracy = [100 * done["test_accuracy"] for done in epochs]
            left.plot(seconds, accuracy, label=f"{name}: {accuracy[-1]:.2f} %", markersize=5, **STYLE[name])
    left.set(title="Accuracy over time, a marker an epoch", xlabel="training time [s]", ylabel="test accuracy [%]")
    left.set_xlim(left=0)
    left.legend(loc="lower right", frameon=False, title="after the last epoch")
    # The leap of the first epoch would flatten everything that follows it, so a long run's axis begins at the second.
    later = [100 * done["test_accuracy"] for epochs in curves.values() if len(epochs) > 5 for done in epochs[1:]]
    if later:
        margin = 0.1 * (max(later) - min(later)) or 1.0
        left.set_ylim(min(later) - margin, min(100.0, max(later) + margin))

    moved = curves["prioritized"]
    if moved:
        epochs_ = [done["epoch"] for done in moved]
        line = {p: [done["priorities"][p] for done in moved] for p in moved[0]["priorities"]}
        colour = STYLE["prioritized"]["color"]
        right.fill_between(epochs_, line["5"], line["95"], color=colour, alpha=0.15, linewidth=0)
        right.fill_between(epochs_, line["25"], line["75"], color=colour, alpha=0.30, linewidth=0)
        right.plot(epochs_, line["50"], color=colour, marker="o" if len(moved) < 15 else None, markersize=4)
        low = min(line["5"])
        if low > 0 and max(line["95"]) / low > 20:
            right.set_yscale("log")
        for percentile, label in (("5", "5 %"), ("25", "25 %"), ("50", "median"), ("75", "75 %"), ("95", "95 %")):
            end = (epochs_[-1], line[percentile][-1])
            right.annotate(label, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        right.set_xlim(min(epochs_) - 0.1, max(epochs_) + 0.1)
        right.xaxis.get_major_locator().set_params(integer=True)
    right.set(title="Percentiles of the priorities", xlabel="epoch", ylabel=f"priority (policy {config['policy']!r})")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path)
