"""Late Stopping: find wrong labels as those learned last, in rounds of training that each remove some.

40 % of Fashion-MNIST's training labels are replaced by random ones. In each round a new network is trained until
the wanted share of the examples has been predicted right k times in a row; those that were not are removed. A last
network is trained on what remains, another on everything for as many epochs, in the end learning the wrong labels by
heart, and one on everything for half as many, as training for less long helps under noise too: here it helps as much.
What the rounds give is the knowledge which labels are wrong, for a training that is longer than all of these.

Source: Yuan et al., "Late Stopping: Avoiding Confidently Learning from Mislabeled Examples", ICCV 2023. The keep rate
must be chosen for the share of wrong labels, and rounds are fewer here than there.
"""

import sys

import numpy as np
import torch

from fastprio.policies import LateStopping
from fastprio.study.corruptions import corrupt
from fastprio.study.trial import accuracy, found, losses_and_correct, main

WAYS = ("everything", "everything, half as long", "Late Stopping")
ACCURACY = "test accuracy, %"
ROUNDS = ((1, 1), (2, 1), (3, 1))
LAST_EPOCHS = 20


def run(way, trial):
    data = trial.data(2_200)
    made = corrupt(data.train, data.classes, "labels", 0.4, trial.seed)
    policy = LateStopping(keep=0.87, rounds=ROUNDS, warm_up=1, most_epochs=25) if way == WAYS[-1] else "uniform"
    loader = trial.loader(made.split, policy)
    left, model = LAST_EPOCHS // (2 if way == WAYS[1] else 1), None
    while left:
        kept = np.zeros(len(made.split), bool)
        for number, batch in enumerate(loader):
            plan = loader.sampler.plan
            if number == 0 and (model is None or plan.info.get("round_over")):
                model = trial.model(data)
                optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
            kept[loader.indices] = True
            losses, correct = losses_and_correct(model, batch)
            loss = loader.step(losses, **correct)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loader.score(model, losses_and_correct)  # those trained on; nothing after the last round
        left -= plan.info.get("round", len(ROUNDS)) == len(ROUNDS)
    return {ACCURACY: accuracy(model, data.test), **(found(~kept, made.altered) if way == WAYS[-1] else {})}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
