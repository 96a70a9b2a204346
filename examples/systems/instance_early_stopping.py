"""Instance-dependent early stopping: no backprop for examples whose loss has stopped changing.

A network is trained on Fashion-MNIST, as usual and with IES: an example is left out of an epoch where its loss has
become flat (the mean of its last three |second differences| is below a threshold), and is forwarded at the epoch's end,
so that it comes back if its loss moves again. Seconds are those of training and of this pass over what was left out.
Fewer backprops can be had by training for fewer epochs: that is tried as well, with no more of them than IES needs.

Source: Yuan et al., "Instance-dependent Early Stopping", ICLR 2025. The threshold there is 0.001, of long training; in
these few epochs losses are not that flat.
"""

import sys
import time

import torch

from fastprio.policies import InstanceEarlyStopping
from fastprio.study.trial import accuracy, losses_of, main

WAYS = ("everything", "everything, fewer epochs", "IES")
ACCURACY, BACKPROPS, SECONDS = "test accuracy, %", "backprops", "seconds"


def run(way, trial):
    data, epochs = trial.data(6_000), trial.of(20, 30)
    epochs = trial.of(13, 8) if way == WAYS[1] else epochs
    model = trial.model(data)
    loader = trial.loader(data.train, InstanceEarlyStopping(threshold=0.02) if way == "IES" else "uniform")
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / epochs))
    backprops, began = 0, time.perf_counter()
    for _ in range(epochs):
        for batch in loader:
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            backprops += len(batch[1])
        loader.score(model, losses_of)  # what IES has left out; nothing otherwise
        decay.step()
    seconds = time.perf_counter() - began
    return {ACCURACY: accuracy(model, data.test), BACKPROPS: backprops, SECONDS: seconds}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
