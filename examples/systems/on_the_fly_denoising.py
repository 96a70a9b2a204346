"""On-the-fly denoising: in one run, remove what has the losses of random labels; the last layer says which those are.

40 % of Fashion-MNIST's training labels are replaced by random ones. With a large learning rate their losses stay high.
Just before it falls, the losses that random labels would have are drawn from the last layer alone, and examples whose
own losses are above their percentile are removed; no clean data and no second network are needed. Without removal,
training on after the fall learns wrong labels by heart: so a network that stops one epoch after it is tried as well.

Source: Song et al., "Robust and On-the-fly Dataset Denoising for Image Classification", ECCV 2020 (arXiv 2003.10647),
in the form that `fastprio.policies.OnTheFlyDenoising` describes.
"""

import sys

import numpy as np
import torch

from fastprio.policies import OnTheFlyDenoising
from fastprio.study.corruptions import corrupt
from fastprio.study.trial import accuracy, found, losses_of, main

WAYS = ("everything", "everything, stopped early", "ODD")
ACCURACY = "test accuracy, %"


def run(way, trial):
    data, epochs, falls = trial.data(6_000), trial.of(16, 40), trial.of(8, 16)
    made = corrupt(data.train, data.classes, "labels", 0.4, trial.seed)
    model = trial.model(data)
    policy = OnTheFlyDenoising(epoch=falls, history=2, percentile=30) if way == "ODD" else "uniform"
    loader = trial.loader(made.split, policy)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [falls], 0.1)
    for epoch in range(falls + 1 if way == WAYS[1] else epochs):
        kept = np.zeros(len(made.split), bool)
        for batch in loader:
            kept[loader.indices] = True
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if way == "ODD" and epoch == falls - 1:
            last = model.layers[-1]
            policy.simulate(last.weight, last.bias, samples=20_000)
        schedule.step()
    return {ACCURACY: accuracy(model, data.test), **(found(~kept, made.altered) if way == "ODD" else {})}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
