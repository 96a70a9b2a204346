"""Multiplicative reweighting: wrong labels lose their weight, loss by loss.

40 % of Fashion-MNIST's training labels are replaced by random ones. A network is trained on them as they are, and with
exponentiated-gradient weights: after every epoch all examples are forwarded, and each one's weight is multiplied by
exp(-eta loss). As training for less long helps under noise too, it is tried as well.

Source: Bar et al., "Multiplicative Reweighting for Robust Neural Network Optimization", arXiv 2102.12192; the same
update in Majidi et al., "Exponentiated Gradient Reweighting for Robust Training Under Label Noise and Beyond", arXiv
2104.01493.
"""

import sys

import torch

from fastprio.policies import MultiplicativeReweighting
from fastprio.study.corruptions import corrupt
from fastprio.study.trial import accuracy, losses_of, main

WAYS = ("equal weights", "equal weights, a third as long", "reweighted")
ACCURACY, SHARE = "test accuracy, %", "weight of wrong labels, %"


def run(way, trial):
    data, epochs = trial.data(6_000), trial.of(12, 30)
    epochs //= 3 if way == WAYS[1] else 1
    made = corrupt(data.train, data.classes, "labels", 0.4, trial.seed)
    model = trial.model(data)
    loader = trial.loader(made.split, MultiplicativeReweighting(eta=0.1) if way == "reweighted" else "uniform")
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    for _ in range(epochs):
        of_wrong = total = 0.0
        for batch in loader:
            weights, wrong = loader.weights, torch.from_numpy(made.altered[loader.indices])
            total += float(weights.sum())
            of_wrong += float(weights[wrong].sum())
            loss = loader.step(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loader.score(model, losses_of)
    return {ACCURACY: accuracy(model, data.test), SHARE: 100 * of_wrong / total}  # the last epoch's


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
