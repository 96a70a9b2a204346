"""Class-incremental learning with replay: old classes kept in mind by kept images, or by images drawn from the network.

A network learns five classes of Fashion-MNIST. Then its head learns the five others, without the images of the first:
with nothing to replay, with forty exemplars of each class, or with forty images of each class that are inverted from
the network; half of every batch is of these. Inverted images are optimised to be of their class; held consistent, also
to have that class's features: a Gaussian of these (a mean each class, one covariance) is kept, and that of the images
is drawn to it. Last, the norms of the classes' weights are held alike too.

Only the head learns here. Where all layers do, the first ones tell inverted images from real ones, and of the old
classes a quarter remains with any of the inverted images, two thirds with exemplars (one seed, on held-out images).

Source: Wang et al., "Enhancing Consistency and Mitigating Bias: A Data Replay Approach for Incremental Learning",
arXiv 2401.06548, whose losses are followed in form, not in detail.
"""

import copy
import functools
import sys

import torch
from torch.nn import functional as F

from fastprio.policies import ReplayMixture
from fastprio.study.data import Split
from fastprio.study.trial import accuracy, main

WAYS = ("nothing", "exemplars", "inverted", "inverted, consistent", "the same, weights alike")
OLD, NEW, ALL = "old classes, %", "new classes, %", "all classes, %"
CLASSES = 5  # of each task
REPLAYED = 40  # of each class


def train(model, parameters, loader, epochs, classes, penalty=0.0):
    optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    for _ in range(epochs):
        for images, labels in loader:
            loss = loader.step(F.cross_entropy(model(images)[:, :classes], labels, reduction="none"))
            loss = loss + penalty * model.layers[-1].weight.norm(dim=1).var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def gaussian(features, labels):
    """The mean of each class's features, and the covariance that the classes have in common."""
    means = torch.stack([features[labels == k].mean(0) for k in range(CLASSES)])
    centred = features - means[labels]
    return means, centred.T @ centred / len(features) + 0.01 * torch.eye(features.shape[1])


def divergence(these, kept):
    """The KL divergence between the classes' Gaussians, their mean."""
    (means, covariance), (kept_means, kept_covariance) = these, kept
    precision, apart = kept_covariance.inverse(), means - kept_means
    distance = ((apart @ precision) * apart).sum(1).mean()
    spread = torch.trace(precision @ covariance) - len(covariance) + kept_covariance.logdet() - covariance.logdet()
    return 0.5 * (distance + spread)


def invert(model, kept, like, consistent):
    """Images of the old classes, of the size of ``like``, from the network and the Gaussian of its features alone."""
    *layers, head = model.layers
    labels = torch.arange(CLASSES).repeat(REPLAYED)
    images = torch.randn(len(labels), *like.shape[1:]).requires_grad_()
    optimizer = torch.optim.Adam([images], 0.1)
    for _ in range(100):
        features = torch.nn.Sequential(*layers)(images)
        smooth = images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()
        loss = F.cross_entropy(head(features)[:, :CLASSES], labels) + 0.1 * smooth
        if consistent:
            loss = loss + divergence(gaussian(features, labels), kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(like.min(), like.max())
    return Split(images.detach(), labels)


@functools.cache
def pretrained(trial):
    """The network that knows the old classes, what there is to replay, and the data."""
    data = trial.data(10_000)
    old = data.train[data.train.labels < CLASSES]
    model = trial.model(data)
    train(model, model.parameters(), trial.loader(old), trial.of(6, 15), CLASSES)
    exemplars = torch.cat([(old.labels == k).nonzero()[:REPLAYED, 0] for k in range(CLASSES)])
    frozen = copy.deepcopy(model).requires_grad_(False)
    kept = gaussian(frozen.layers[:-1](old.images), old.labels)
    inverted = [invert(frozen, kept, data.train.images, consistent) for consistent in (False, True)]
    return model, (old[:0], old[exemplars], *inverted, inverted[1]), data


def run(way, trial):
    model, pools, data = pretrained(trial)
    model, pool, new = copy.deepcopy(model), pools[WAYS.index(way)], data.train[data.train.labels >= CLASSES]
    both = Split(torch.cat([pool.images, new.images]), torch.cat([pool.labels, new.labels]))
    loader = trial.loader(both, ReplayMixture(replay=0.5, boundary=len(pool)))
    penalty = 10.0 if way == WAYS[-1] else 0.0
    train(model, model.layers[-1].parameters(), loader, trial.of(4, 10), data.classes, penalty)
    parts = [accuracy(model, data.test[(data.test.labels < CLASSES) == first]) for first in (True, False)]
    return {OLD: parts[0], NEW: parts[1], ALL: accuracy(model, data.test)}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, WAYS, run))
