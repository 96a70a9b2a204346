"""Task-robust pre-training: for the sake of the worst task, draw the tasks whose loss is largest.

The tasks are to classify Fashion-MNIST's images as they are, and turned by 90, 180 and 270 degrees; of the last ones
there are few images. Trained on the average, a network serves the large tasks. GroupDRO draws a task in proportion to
exp(its loss / temperature), and then one of its images. With an endless temperature all tasks are drawn alike, which
does as much here.

Source: Wang et al., "Task-Robust Pre-Training for Worst-Case Downstream Adaptation", NeurIPS 2023 (arXiv 2306.12070),
whose tasks are other ones and whose algorithm `fastprio.policies.GroupDRO` follows in form; GroupDRO is of Sagawa et
al., ICLR 2020 (arXiv 1911.08731).
"""

import sys

import numpy as np
import torch

from fastprio.policies import GroupDRO
from fastprio.study.data import Split
from fastprio.study.trial import accuracy, losses_of, main

WAYS = ("average", "tasks alike", "GroupDRO")
WORST, MEAN = "worst task, %", "mean of tasks, %"
SHARES = (0.7, 0.2, 0.07, 0.03)


def turned(split, turns):
    return Split(split.images.rot90(turns, (2, 3)), split.labels)


def tasks(split):
    """The split's images in turn, of the sizes that SHARES says, each part turned once more; and each one's task."""
    sizes = [int(share * len(split)) for share in SHARES]
    ends = np.cumsum(sizes)
    parts = [turned(split[torch.arange(ends[k] - sizes[k], ends[k])], k) for k in range(len(SHARES))]
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return Split(images, labels), np.repeat(np.arange(len(SHARES)), sizes)


def run(way, trial):
    data = trial.data(6_000)
    train, task = tasks(data.train)
    temperature = {"tasks alike": 1e6, "GroupDRO": 0.5}.get(way)
    policy = GroupDRO(task, len(SHARES), temperature=temperature, ema=0.9) if temperature else "uniform"
    loader = trial.loader(train, policy)
    model = trial.model(data)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    for _ in range(trial.of(12, 30)):
        for batch in loader:
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    each = [accuracy(model, turned(data.test, turns)) for turns in range(len(SHARES))]
    return {WORST: min(each), MEAN: sum(each) / len(each)}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
