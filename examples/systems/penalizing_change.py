"""Tuning while penalizing change: a bias corrected from a handful of images, and little else changed.

A network learns Fashion-MNIST where every shirt, and nothing else, has a bright corner: it takes the corner for a
shirt. Twenty images of other classes with that corner are to correct it: a change of its weights, zero at first, is
trained on them, under a penalty on the change's squared l2 or its l1 norm, and no longer than until all are predicted
right, as the store's correct bits tell. What is left of the bias shows on other such images, what is lost on images
without corners. Stopping saves steps; what keeps the rest is the penalty, which also leaves more of the bias.

Source: Penzel et al., "Reducing Bias in Pre-trained Models by Tuning while Penalizing Change", VISAPP 2024 (arXiv
2404.12292).
"""

import copy
import functools
import sys

import torch
from torch.func import functional_call

from fastprio.policies import ForgettingEvents
from fastprio.policies.primitives import unpacked
from fastprio.study.data import Split
from fastprio.study.trial import accuracy, losses_and_correct, losses_of, main

WAYS = ("biased", "tuned", "tuned, stopped", "stopped, l2", "stopped, l1")
BIASED, PLAIN, TAKEN = "others with the corner, %", "no corner, %", "steps"
SHIRT, HANDFUL, STEPS = 6, 20, 100
PENALTIES = {
    "stopped, l2": lambda change: 2 * change.square().sum(),
    "stopped, l1": lambda change: 0.05 * change.abs().sum(),
}


def cornered(split):
    images = split.images.clone()
    size = max(4, images.shape[-1] // 6)
    images[:, :, :size, :size] = images.max()
    return Split(images, split.labels)


@functools.cache
def biased(trial):
    """A network that takes a bright corner for a shirt, the data, and a handful of images that say otherwise."""
    data = trial.data(6_000)
    others, shirts = data.train[data.train.labels != SHIRT], cornered(data.train[data.train.labels == SHIRT])
    handful, others = cornered(others[torch.arange(HANDFUL)]), others[torch.arange(HANDFUL, len(others))]
    train = Split(torch.cat([others.images, shirts.images]), torch.cat([others.labels, shirts.labels]))
    loader = trial.loader(train)
    model = trial.model(data)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    for _ in range(trial.of(10, 30)):
        for batch in loader:
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, data, handful


def run(way, trial):
    model, data, handful = biased(trial)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    change = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in weights.items()}
    loader = trial.loader(handful, ForgettingEvents(after=STEPS, keep=1), batch_size=HANDFUL)
    optimizer = torch.optim.Adam(change.values(), 0.001)
    penalty, steps = PENALTIES.get(way), 0

    def changed(images):
        return functional_call(model, {name: weights[name] + change[name] for name in weights}, (images,))

    for _ in range(0 if way == "biased" else STEPS):
        for batch in loader:
            losses, correct = losses_and_correct(changed, batch)
            loss = loader.step(losses, **correct)
            if penalty:
                loss = loss + sum(penalty(each) for each in change.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        if way != "tuned" and all_right(loader.store):
            break
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += change[name]
    misled = cornered(data.test[data.test.labels != SHIRT])
    return {BIASED: accuracy(model, misled), PLAIN: accuracy(model, data.test), TAKEN: steps}


def all_right(store):
    """Whether every example was predicted as its label when it was last seen."""
    return unpacked(store.column("was_correct"), len(store)).all()


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
