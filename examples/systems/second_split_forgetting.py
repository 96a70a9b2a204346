"""Second-split forgetting time: wrong labels are forgotten first, rare examples are not.

One half of Fashion-MNIST's training images is learned, then training goes on with the other half alone, and one watches
when examples of the first half are forgotten for good; then the halves are swapped, so that every example has its time.
A tenth of the labels is replaced by random ones, and of the last three classes, whose labels stay right, one in
ten is kept: both are learned late, so that learning time tells them apart less well. "both" is the difference of the
two times, from one run; the source ranks by sums over several runs.

Source: Maini et al., "Characterizing Datapoints via Second-Split Forgetting", NeurIPS 2022.
"""

import functools
import sys

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from fastprio.policies import SecondSplitForgetting
from fastprio.study.corruptions import RARE_CLASSES, corrupt
from fastprio.study.trial import losses_and_correct, main

WAYS = ("learned late", "forgotten early", "both")
FOUND, NOT_RARE = "AUROC, wrong against all right", "AUROC, wrong against rare"


@functools.cache
def times(trial):
    """int64 [n] the epochs at which examples were learned and forgotten, bool [n] which are wrong and which rare."""
    data = trial.data(5_000)
    split = corrupt(data.train, data.classes, "rare", 0.9, trial.seed).split
    made = corrupt(split, data.classes, "labels", 0.1, trial.seed + 1)
    rare = (split.labels >= data.classes - RARE_CLASSES).numpy() & ~made.altered
    learned, forgotten = np.zeros((2, len(split)), np.int64)
    for swap in (False, True):
        policy = SecondSplitForgetting(first_epochs=trial.of(12, 30), swap=swap)
        loader = trial.loader(made.split, policy)
        model = trial.model(data)
        for epoch in range(2 * policy.first_epochs):
            if epoch in (0, policy.first_epochs):
                optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
            for batch in loader:
                losses, correct = losses_and_correct(model, batch)
                loss = loader.step(losses, **correct)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loader.score(model, losses_and_correct)
        here = policy.learned_at(loader.store) >= 0
        learned[here] = policy.learned_at(loader.store)[here]
        forgotten[here] = policy.forgotten_at(loader.store)[here]
    return learned, forgotten, made.altered, rare


def run(way, trial):
    learned, forgotten, wrong, rare = times(trial)
    score = {"learned late": learned, "forgotten early": -forgotten, "both": learned - forgotten}[way]
    either = wrong | rare
    return {FOUND: roc_auc_score(wrong, score), NOT_RARE: roc_auc_score(wrong[either], score[either])}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
