"""``fastprio demo``: the same training run with batches drawn uniformly and by priority, side by side.

Both arms start from the same parameters and see the same number of examples through the same DataLoader code. They
take turns batch by batch, each on its own clock, so that whatever else the machine does slows both alike: on a shared
machine, epochs of the same work have been seen to differ threefold in time.

Choosing is everything that decides which examples come next: what the batch sampler's iterator does (for uniform:
its shuffle) and, with priority, ``sampler.step`` as a whole: the policy, the tree, and the weighted mean of the
losses, whose plain counterpart ``losses.mean()`` is not counted for uniform. Evaluation is outside all times.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import fastprio
from fastprio.bench.training import Choosing
from fastprio.cli import look_here
from fastprio.policies import example, observations
from fastprio.study import demo_report
from fastprio.study.data import FASHION_MNIST, Batches, Data, identity, load
from fastprio.study.files import StudyError
from fastprio.study.models import SmallCNN, evaluate

# Percentiles of the priorities that are kept of every epoch.
PERCENTILES = (5, 25, 50, 75, 95)


class Size(NamedTuple):
    """How much a run does: passes, training examples (None: all there are), and examples a batch."""

    epochs: int
    examples: int | None
    batch_size: int


# By data set and --quick. All but the digits are treated like Fashion-MNIST.
SIZES = {
    ("images", False): Size(6, None, 128),
    ("images", True): Size(3, 8_000, 128),
    ("digits", False): Size(30, None, 32),
    ("digits", True): Size(10, None, 32),
}


@dataclass(frozen=True)
class Config:
    """Settings of a run, with nothing left to default.

    data: a folder, "module:callable", or "digits". examples: how many to train on, None for all. lr: the peak learning
    rate. policy: a name that ``ScoreStore`` knows. threads: of torch. out: folder for the PNG and the JSON.
    """

    data: str
    epochs: int
    batch_size: int
    lr: float
    examples: int | None
    policy: str
    seed: int
    threads: int
    out: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``fastprio demo``."""

    def default(what: str) -> str:
        full, quick, digits, quick_digits = (getattr(size, what) or "all" for size in SIZES.values())
        return f"(default: {full}, quick {quick}; digits {digits}, quick {quick_digits})"

    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        help="folder with the IDX files of MNIST or Fashion-MNIST or the binary version of CIFAR-10 or CIFAR-100; or "
        "module:callable, which returns two map-style data sets (train, test) of (image, label); or 'digits' "
        f"(default: {FASHION_MNIST}, else digits)",
    )
    add("--quick", action="store_true", help="fewer examples and epochs: under a minute")
    add("--epochs", type=int, help=f"passes over the data {default('epochs')}")
    add("--batch-size", type=int, help=f"examples a batch {default('batch_size')}")
    add("--lr", type=float, default=0.05, help="peak learning rate (default: %(default)s)")
    add("--examples", type=int, help=f"training examples to use {default('examples')}")
    add(
        "--policy",
        default="loss",
        help="a name of `fastprio methods`, or module:Class; arguments without a default get an example value, which "
        "is printed (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of parameters and batches (default: %(default)s)")
    # One: where another program takes a core, two threads that wait for each other were seen to be 5 times slower than
    # one, and a small model gains little from more. It also makes results independent of the number of cores.
    add("--threads", type=int, default=1, help="threads of torch (default: %(default)s; more help on an idle machine)")
    add("--out", metavar="DIR", default="fastprio-demo", help="where results go (default: %(default)s)")


def configure(args: argparse.Namespace) -> Config:
    """The configuration that the options mean, defaults that depend on the data set filled in.

    Raises:
        StudyError: an option is out of range.
    """
    data = args.data or (str(FASHION_MNIST) if FASHION_MNIST.is_dir() else "digits")
    size = SIZES["digits" if data == "digits" else "images", args.quick]
    config = Config(
        data=data,
        epochs=size.epochs if args.epochs is None else args.epochs,
        batch_size=size.batch_size if args.batch_size is None else args.batch_size,
        lr=args.lr,
        examples=size.examples if args.examples is None else args.examples,
        policy=args.policy,
        seed=args.seed,
        threads=args.threads,
        out=args.out,
    )
    look_here()  # for module:Class and module:callable
    try:
        example(config.policy)
    except (ValueError, TypeError) as error:
        raise StudyError(str(error)) from error
    for name in ("epochs", "batch_size", "threads"):
        if getattr(config, name) < 1:
            raise StudyError(f"{name} = {getattr(config, name)}: expected at least 1")
    if not 0 < config.lr < math.inf:
        raise StudyError(f"lr = {config.lr}: expected a finite number above 0")
    if not 0 <= config.seed < 1 << 63:
        raise StudyError(f"seed = {config.seed}: expected 0 <= seed < 2^63")
    return config


@dataclass
class Arm:
    """One of the two runs: its model and optimiser, its batches, and what was measured epoch by epoch.

    ``epochs`` holds a plain dictionary for every epoch that was finished; seconds and counts in it are running
    totals, the rest is as it stood at the end of that epoch.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    choosing: Choosing
    loader: DataLoader[Any]
    sampler: fastprio.PrioritySampler | None = None
    store: fastprio.ScoreStore | None = None
    train_seconds: float = 0.0
    reduce_seconds: float = 0.0
    forwards: int = 0
    backprops: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise: the mean of losses float32 [B], weighted and recorded if this arm has priorities."""
        begin = time.perf_counter()
        if self.sampler is None:
            loss = losses.mean()
        else:
            loss = self.sampler.step(losses, **observations(self.sampler.store.policy.requires, logits, labels))
        self.reduce_seconds += time.perf_counter() - begin
        return loss


def learning_rate(progress: float, peak: float) -> float:
    """One cycle: a line up to ``peak`` over the first fifth of the run, a cosine down to 0 over the rest."""
    if progress < 0.2:
        return peak * (0.1 + 0.9 * progress / 0.2)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def train_epoch(arm: Arm, epoch: int, config: Config) -> Iterator[tuple[int, int]]:
    """Trains one epoch, a batch whenever the iterator is advanced, adding to the arm's times and counts.

    Args:
        arm: what is trained. epoch: its number, from 0. config: for the learning rate.

    Yields:
        How many batches are done, and how many an epoch has. The time until the next one is asked for is not counted.
    """
    begin = time.perf_counter()
    if arm.sampler is not None:
        arm.sampler.set_epoch(epoch)
    batches = len(arm.loader)
    for number, (images, labels) in enumerate(arm.loader):
        for group in arm.optimizer.param_groups:
            group["lr"] = learning_rate((epoch + number / batches) / config.epochs, config.lr)
        logits = arm.model(images)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = arm.mean(losses, logits, labels)
        arm.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        arm.optimizer.step()
        arm.forwards += len(labels)
        arm.backprops += len(labels)
        arm.train_seconds += time.perf_counter() - begin
        yield number + 1, batches
        begin = time.perf_counter()
    score_the_rest(arm, config.batch_size)
    arm.train_seconds += time.perf_counter() - begin


def score_the_rest(arm: Arm, batch_size: int) -> None:
    """Forwards, without training, the examples whose losses the policy's plan wants at an epoch's end."""
    if arm.sampler is None:
        return
    rows, store = arm.sampler.to_score(), arm.sampler.store
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        images, labels = arm.loader.dataset.__getitems__(part.tolist())  # type: ignore[attr-defined]
        with torch.no_grad():  # the model has no parts that behave otherwise in evaluation
            logits = arm.model(images)
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        store.update(part, losses, origin="score", **observations(store.policy.requires, logits, labels))
        arm.forwards += len(part)


def in_turns(arms: Sequence[Arm], epoch: int, config: Config) -> Iterator[tuple[int, int]]:
    """Trains one epoch of all arms, which take turns batch by batch; yields as ``train_epoch`` does, once a round."""
    running = [train_epoch(arm, epoch, config) for arm in arms]
    while running:
        # An arm whose plan leaves examples out ends early; the others go on.
        done = [(arm, at) for arm in running if (at := next(arm, None)) is not None]
        running = [arm for arm, _ in done]
        if done:
            yield done[0][1]


def finish_epoch(arm: Arm, data: Data) -> dict[str, Any]:
    """Evaluates the arm on the test set and appends what it measured to ``arm.epochs``."""
    begin = time.perf_counter()
    right, loss = evaluate(arm.model, data.test.images, data.test.labels)
    done: dict[str, Any] = {
        "epoch": len(arm.epochs) + 1,
        "test_accuracy": float(right.double().mean()),
        "test_loss": loss,
        "train_seconds": arm.train_seconds,
        "evaluation_seconds": time.perf_counter() - begin,
        "draw_seconds": arm.choosing.seconds,
        "reduce_seconds": arm.reduce_seconds,
        "batches": arm.choosing.count,
        "forwards": arm.forwards,
        "backprops": arm.backprops,
    }
    if arm.store is not None:
        priorities = np.asarray(arm.store.priorities)
        done["priorities"] = {str(p): float(np.percentile(priorities, p)) for p in PERCENTILES}
        done["store"] = {name: float(value) for name, value in arm.store.stats().items()}
    arm.epochs.append(done)
    return done


def prepare(data: Data, config: Config) -> list[Arm]:
    """The two arms, equal but for their batches, with everything compiled and warmed up.

    Raises:
        StudyError: the images do not suit the model, or the store does not take the policy.
    """
    channels, height, width = data.train.images.shape[1:]
    if height != width or height % 4:
        raise StudyError(f"{data.name}: images of {height}x{width}: the model takes squares of a multiple of 4")
    torch.manual_seed(config.seed)
    initial = SmallCNN(height, data.classes, channels=channels)
    dataset = Batches(data.train)
    generator = torch.Generator().manual_seed(config.seed)

    def arm(name: str, batches: Any, examples: Batches, **extra: Any) -> Arm:
        model = copy.deepcopy(initial)
        optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        choosing = Choosing(batches)
        # DataLoader takes any iterable of lists as its batch sampler, whatever the annotation says.
        loader = DataLoader(examples, batch_sampler=choosing, collate_fn=identity, num_workers=0)
        return Arm(name, model, optimizer, choosing, loader, **extra)

    def prioritized(examples: Batches, batch_size: int) -> Arm:
        store = fastprio.ScoreStore(len(examples), policy=example(config.policy), epochs=config.epochs)
        sampler = fastprio.PrioritySampler(store, batch_size=batch_size, seed=config.seed)
        batches = fastprio.PriorityBatchSampler(sampler, batch_size)
        return arm("prioritized", batches, examples, sampler=sampler, store=store)

    # A throwaway run of two epochs (the first covers all examples, the second draws by priority) touches every
    # code path and batch shape, so that compiling, allocating and choosing kernels is in nobody's time.
    few = min(len(dataset), 2 * config.batch_size + len(dataset) % config.batch_size)
    subset = Batches(dataclasses.replace(data.train, images=data.train.images[:few], labels=data.train.labels[:few]))
    try:
        rehearsal = prioritized(subset, min(config.batch_size, few))
        for epoch in range(min(2, config.epochs)):
            for _ in in_turns([rehearsal], epoch, config):
                pass
    except ValueError as error:  # an unknown policy, or one that this demo cannot feed
        raise StudyError(str(error)) from error
    uniform = BatchSampler(RandomSampler(dataset, generator=generator), config.batch_size, drop_last=False)
    return [arm("uniform", uniform, dataset), prioritized(dataset, config.batch_size)]


def demo(config: Config) -> int:
    """Runs the demo: trains both arms, shows them as they go, prints a table, writes ``demo.png`` and ``demo.json``.

    Returns:
        0, or 130 if interrupted; results of the epochs finished until then are written all the same.

    Raises:
        StudyError: something is absent or does not fit, in one line.
        ModuleNotFoundError: rich, matplotlib or (for digits) scikit-learn is not installed.
    """
    demo_report.require()
    data = load(config.data, examples=config.examples, seed=config.seed)
    config = dataclasses.replace(config, examples=len(data.train))
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder}: cannot be made: {error.strerror}") from error
    arms: list[Arm] = []
    finished = True
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with demo_report.Display(config.epochs) as display:
            display.say(
                f"{data.name}: {len(data.train):,} examples, {config.epochs} epochs of batches of {config.batch_size}, "
                f"policy {example(config.policy)!r}, torch threads {config.threads}; warming up"
            )
            arms = prepare(data, config)
            for epoch in range(config.epochs):
                for batch, batches in in_turns(arms, epoch, config):
                    display.tick(epoch, batch, batches)
                for arm in arms:
                    display.epoch(arm.name, finish_epoch(arm, data))
    except KeyboardInterrupt:
        finished = False  # what was done until now is written below
    finally:
        torch.set_num_threads(threads)
    if not all(arm.epochs for arm in arms) or not arms:
        return 130  # before there was anything to compare
    curves = {arm.name: arm.epochs for arm in arms}
    sizes = {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": data.classes}
    demo_report.publish(folder, dataclasses.asdict(config), sizes, curves, finished)
    return 0 if finished else 130


def run(args: argparse.Namespace) -> int:
    """The command: ``demo`` with the parsed options; 2 after one line on stderr where something is missing."""
    try:
        if args.data is None and not FASHION_MNIST.is_dir():
            print(f"{FASHION_MNIST} is absent: training on scikit-learn's digits instead (--data DIR for images)")
        return demo(configure(args))
    except StudyError as error:
        print(f"fastprio demo: {error}", file=sys.stderr)
        return 2
