"""Task-robust pre-training: for the sake of the worst task, draw the tasks whose loss is largest.

The tasks are to classify Fashion-MNIST's images as they are, and turned by 90, 180 and 270 degrees; of the last ones
there are few images. Trained on the average, a network serves the large tasks. GroupDRO draws a task in proportion to
exp(its loss / temperature), and then one of its images. With an endless temperature all tasks are drawn alike, which
does as much here: what holds the small tasks back is that their few images are soon learnt by heart.

Source: Wang et al., "Task-Robust Pre-Training for Worst-Case Downstream Adaptation", NeurIPS 2023 (arXiv 2306.12070),
whose tasks are other ones; GroupDRO is of Sagawa et al., ICLR 2020 (arXiv 1911.08731).
"""

import sys

import numpy as np
import torch

from fastprio.policies import GroupDRO
from fastprio.study.data import Split
from fastprio.study.models import SmallCNN
from fastprio.study.trial import accuracy, losses_of, main

WAYS = ("average", "tasks alike", "GroupDRO")
WORST, MEAN = "worst task, %", "mean of tasks, %"
SHARES = (0.7, 0.2, 0.07, 0.03)


def turned(split, turns):
    return Split(split.images.rot90(turns, (2, 3)), split.labels)


def run(way, trial):
    data = trial.data(6_000)
    sizes = [int(share * len(data.train)) for share in SHARES]
    groups = np.repeat(np.arange(len(SHARES)), sizes)
    parts = [turned(part, turns) for turns, part in enumerate(pieces(data.train, sizes))]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    temperature = {"tasks alike": 1e6, "GroupDRO": 0.5}.get(way)
    policy = GroupDRO(groups, len(SHARES), temperature=temperature, ema=0.9) if temperature else "uniform"
    loader = trial.loader(train, policy)
    model = SmallCNN(data.train.images.shape[-1], data.classes, width=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    for _ in range(trial.of(15, 30)):
        for batch in loader:
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    each = [accuracy(model, turned(data.test, turns)) for turns in range(len(SHARES))]
    return {WORST: min(each), MEAN: sum(each) / len(each)}


def pieces(split, sizes):
    ends = np.cumsum(sizes)
    return [split[torch.arange(end - size, end)] for size, end in zip(sizes, ends, strict=True)]


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
