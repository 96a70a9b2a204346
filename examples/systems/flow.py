"""FLOW: fine-tuning that forgets less, by weighing most what the pre-trained model finds easy.

A network learns five classes of Fashion-MNIST. A new head learns the other five on its frozen features; then
everything is fine-tuned on them, and the old head is tried again on the old classes. With FLOW an example weighs
exp(-its loss before fine-tuning / the median of these losses). That also learns less of the new classes: so plain
fine-tuning is tried with a learning rate, chosen on held-out images, with which it learns them no better. It forgets as
little: at this size, of what FLOW keeps, nothing comes from which examples it weighs most.

Source: Sanyal et al., "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting", ICML 2025 (arXiv 2502.02797).
"""

import copy
import functools
import sys

import torch
from torch import nn

from fastprio.policies import FLOW
from fastprio.study.trial import accuracy, losses_of, main

WAYS = ("new head only", "plain", "plain, slower", "FLOW")
KEPT, LEARNT = "old classes, %", "new classes, %"


def train(model, parameters, loader, lr, epochs):
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9)
    for _ in range(epochs):
        for batch in loader:
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def half(split, first):
    """The examples of the first five classes, or of the others, whose labels then begin at 0."""
    part = split[(split.labels < 5) == first]
    part.labels.remainder_(5)
    return part


@functools.cache
def pretrained(trial):
    """Features with the old head, the same features with a head for the new classes, and the data."""
    data = trial.data(12_000)
    *layers, last = trial.model(data).layers
    features = nn.Sequential(*layers)
    old, new = (nn.Sequential(features, nn.Linear(last.in_features, 5)) for _ in range(2))
    train(old, old.parameters(), trial.loader(half(data.train, True)), 0.05, trial.of(6, 15))
    train(new, new[1].parameters(), trial.loader(half(data.train, False)), 0.02, trial.of(2, 10))
    return old, new, data


def run(way, trial):
    old, new, data = pretrained(trial)
    model, split = copy.deepcopy(new), half(data.train, False)
    loader = trial.loader(split, FLOW() if way == "FLOW" else "uniform")
    if way == "FLOW":
        loader.score(new, losses_of, origin="reference")
    if way != "new head only":
        train(model, model.parameters(), loader, 0.003 if way == "plain, slower" else 0.05, trial.of(4, 10))
    then = nn.Sequential(model[0], old[1])  # the old head on the features as they are now
    return {KEPT: accuracy(then, half(data.test, True)), LEARNT: accuracy(model, half(data.test, False))}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
