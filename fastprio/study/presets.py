"""The studies that come with the project: their protocols, and which runs they have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastprio.study.protocol import Cell, Protocol

Column = tuple[str, float]
Row = tuple[str, float]

SHUFFLED: tuple[Column, ...] = (("shuffle", 0.25), ("shuffle", 0.5))
PAPER: tuple[Column, ...] = (
    ("clean", 0.0),
    ("labels", 0.25),
    ("labels", 0.5),
    *SHUFFLED,
    ("gauss", 0.25),
    ("gauss", 0.5),
)
"""The columns of Table 1 of arXiv 2107.07741."""
RARE: Column = ("rare", 0.98)
THIRD, HALF = 1 / 3, 1 / 2

COMPARED: tuple[Row, ...] = (
    ("uniform", 1.0),
    ("random subset", THIRD),
    ("random subset", HALF),
    ("random subset", 2 / 3),
    ("SB", THIRD),
    ("VR", THIRD),
    ("guarded SB", THIRD),
)
"""On these the claims rest, and what uniform training of any budget comes to."""
OTHERS: tuple[Row, ...] = (
    ("SB", HALF),
    ("VR", HALF),
    ("InfoBatch", 1.0),
    ("IES", 1.0),
    ("guarded InfoBatch", 1.0),
)
PRUNED: tuple[Row, ...] = (("InfoBatch", 1.0), ("guarded InfoBatch", 1.0))
"""The guard around a policy, for which less is claimed than around a selector."""
NOISY: tuple[Column, ...] = (("labels", 0.25), ("labels", 0.5), ("gauss", 0.25), ("gauss", 0.5))
ABLATIONS: tuple[Row, ...] = (("guarded uniform", THIRD), ("oracle SB", THIRD))


@dataclass(frozen=True)
class Block:
    """Runs of all combinations of rows, columns, seeds and scales of the learning rate."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    seeds: int
    lr_scales: tuple[float, ...] = (1.0,)

    def cells(self) -> Iterable[Cell]:
        """One by one; a seed whole before the next, so that a study stopped early has the first seeds of everything."""
        for seed in range(self.seeds):
            for kind, level in self.columns:
                for method, budget in self.rows:
                    for scale in self.lr_scales:
                        yield Cell(kind, level, method, budget, seed, scale)


@dataclass(frozen=True)
class Preset:
    """A protocol and its runs."""

    protocol: Protocol
    blocks: tuple[Block, ...]

    def cells(self) -> list[Cell]:
        """All runs, each once, those of early seeds first."""
        found = {cell: None for block in self.blocks for cell in block.cells()}
        return sorted(found, key=lambda cell: cell.seed)


SOME: tuple[Column, ...] = (("clean", 0.0), ("labels", 0.5), ("gauss", 0.5))

PRESETS: dict[str, Preset] = {
    "quick": Preset(
        Protocol("quick", "digits", "small-cnn", 1200, 200, epochs=20, batch_size=32, lr=0.05, probe=3),
        (Block((*COMPARED, *OTHERS), (*SOME, RARE), 3), Block(ABLATIONS, SOME, 3)),
    ),
    "paper-small": Preset(
        Protocol(
            "paper-small", "fashion-mnist", "small-cnn", 20_000, 5_000, 20, 128, lr=0.07, shift=1, ies_threshold=0.02
        ),
        (
            Block((*COMPARED, *PRUNED), (*PAPER, RARE), 6),
            Block(OTHERS, (*PAPER, RARE), 3),
            Block((("VR", HALF),), NOISY, 6),
            Block(ABLATIONS, SOME, 3),
            Block((("uniform", 1.0), ("SB", THIRD), ("guarded SB", THIRD)), SOME[:2], 3, (0.5, 2.0)),
        ),
    ),
    "paper": Preset(
        Protocol(
            "paper",
            "cifar-10",
            "wrn-28-10",
            50_000,
            0,
            100,
            128,
            lr=0.1,
            warm_up=0.0,
            shift=4,
            flip=True,
            device="cuda",
        ),
        (Block((*COMPARED, *OTHERS), PAPER, 3),),
    ),
}
"""quick: minutes on two cores. paper-small: hours there. paper: the paper's settings as far as they are known, for a
GPU with CIFAR-10's binary files (``--set data=DIR``)."""
