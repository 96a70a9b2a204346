"""Image classifiers: one that a few CPU cores train in minutes, and the residual networks that papers train."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

MODELS = "small-cnn, small-cnn-WIDTH, resnet9[-gn], wrn-DEPTH-WIDEN[-gn]"
"""The forms of a name for ``make_model``."""

# ResNet9 and WideResNet halve the image up to three times, and group normalisation needs some pixels to work on.
_LEAST_SIZE = 8


def make_model(name: str, channels: int, size: int | tuple[int, int], classes: int) -> nn.Module:
    """A new model by its name.

    Args:
        name: "small-cnn" or "small-cnn-WIDTH"; "resnet9"; "wrn-DEPTH-WIDEN", as in "wrn-16-4". The last two with
            "-gn" at the end have group in place of batch normalisation.
        channels: of the images. size: their height and width in pixels, or the pair of both: a multiple of 4 for the
            small CNN, at least 8 for the others. classes: number of outputs.

    Returns:
        A module that takes float32 [B, channels, size, size] to logits float32 [B, classes].

    Raises:
        ValueError: another name, a depth that does not exist, or images that the model does not take.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"images of {height}x{width}: expected squares")
    found = re.fullmatch(r"(small-cnn)(?:-(\d+))?|(resnet9|wrn-(\d+)-(\d+))(-gn)?", name, re.ASCII)
    if found is None:
        raise ValueError(f"model = {name!r}: expected one of {MODELS}")
    small, cnn_width, _, depth, widen, group = found.groups()
    if small:
        return SmallCNN(height, classes, int(cnn_width or 16), channels)
    if height < _LEAST_SIZE:
        raise ValueError(f"images of {height}x{width}: {name} takes {_LEAST_SIZE}x{_LEAST_SIZE} and larger")
    norm = "group" if group else "batch"
    if depth:
        return WideResNet(int(depth), int(widen), channels, classes, norm)
    return ResNet9(channels, classes, norm)


class SmallCNN(nn.Module):
    """Two convolutions, each halving the image, and two linear layers.

    Args:
        size: height and width of the images in pixels, a multiple of 4 (28 for Fashion-MNIST, 8 for digits).
        classes: number of outputs.
        width: channels of the first convolution; the second has twice as many.
        channels: of the images.

    Raises:
        ValueError: size is not a positive multiple of 4, or width is below 1.

    There is neither dropout nor batch normalisation: an example's loss then depends on it and on the parameters
    alone, not on chance or on its neighbours in the batch, which is what a score should mean.
    """

    def __init__(self, size: int = 28, classes: int = 10, width: int = 16, channels: int = 1) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f"size = {size}: expected a positive multiple of 4")
        if width < 1:
            raise ValueError(f"width = {width}: expected at least 1")
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 4) ** 2, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """logits float32 [B, classes] of images float32 [B, channels, size, size]."""
        logits: Tensor = self.layers(images)
        return logits


def _batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _group_norm(channels: int) -> nn.Module:
    """Of 32 groups, or of as many, fewer than that, as divide the channels."""
    groups = next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": _batch_norm, "group": _group_norm}


def _norm(kind: str) -> Callable[[int], nn.Module]:
    """The normalisation of a kind: called with a number of channels, it makes the layer."""
    if kind not in _NORMS:
        raise ValueError(f"norm = {kind!r}: expected one of {', '.join(_NORMS)}")
    return _NORMS[kind]


class ResNet9(nn.Module):
    """A residual network of nine layers that trains in few epochs, as known from the DAWNBench competition.

    Args:
        channels: of the images, which are squares from 8x8 up. classes: number of outputs.
        norm: "batch", with which an example's loss in training depends on its neighbours in the batch; or "group",
            with which it does not: in 32 groups of channels.

    Raises:
        ValueError: another norm.

    Source: D. Page, "How to train your ResNet" (2018). The last pooling takes whatever is left of the image there, 4x4
    in the source, so that other images than 32x32 fit.
    """

    def __init__(self, channels: int, classes: int, norm: str = "batch") -> None:
        super().__init__()
        normalised = _norm(norm)

        def convolution(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), normalised(outputs), nn.ReLU(inplace=True)
            )

        def residual(width: int) -> _Residual:
            return _Residual(nn.Sequential(convolution(width, width), convolution(width, width)))

        self.layers = nn.Sequential(
            convolution(channels, 64),
            convolution(64, 128),
            nn.MaxPool2d(2),
            residual(128),
            convolution(128, 256),
            nn.MaxPool2d(2),
            convolution(256, 512),
            nn.MaxPool2d(2),
            residual(512),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(512, classes, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """logits float32 [B, classes] of images float32 [B, channels, size, size]."""
        logits: Tensor = self.layers(images) * 0.125  # the source's: or the first losses are of the size of tens
        return logits


class _Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.inner(x)
        return added


class WideResNet(nn.Module):
    """A wide residual network: three groups of pre-activation blocks of 16, 32 and 64 times ``widen`` channels.

    Args:
        depth: 6n + 4 for n >= 1: 10, 16, 22, 28, 40, ...; n is the number of blocks in a group.
        widen: the factor k of the paper, >= 1.
        channels: of the images, which are squares from 8x8 up. classes: number of outputs.
        norm: "batch", with which an example's loss in training depends on its neighbours in the batch; or "group",
            with which it does not: min(32, c) groups of c channels, or the next smaller number that divides c.

    Raises:
        ValueError: another depth, widen or norm.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv 1605.07146), the blocks of two 3x3 convolutions,
    without dropout, and the initial weights of He et al. (arXiv 1502.01852).
    """

    def __init__(self, depth: int, widen: int, channels: int, classes: int, norm: str = "batch") -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth = {depth}: expected 6n + 4 with n >= 1: 10, 16, 22, 28, ...")
        if widen < 1:
            raise ValueError(f"widen = {widen}: expected at least 1")
        normalised = _norm(norm)
        layers: list[nn.Module] = [_convolution(channels, 16, 3, 1)]
        inputs = 16
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for block in range((depth - 4) // 6):
                layers.append(_Block(inputs, width, 1 if block else stride, normalised))
                inputs = width
        layers += [normalised(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """logits float32 [B, classes] of images float32 [B, channels, size, size]."""
        logits: Tensor = self.layers(images)
        return logits


class _Block(nn.Module):
    """Normalisation, ReLU, convolution, twice, added to the input.

    Where the number of channels changes, the input passes a 1x1 convolution of the same stride, behind the first
    activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.before = normalised(inputs)
        self.first = _convolution(inputs, outputs, 3, stride)
        self.between = normalised(outputs)
        self.second = _convolution(outputs, outputs, 3, 1)
        self.shortcut = None if inputs == outputs else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.before(x), inplace=True)
        inner = self.second(functional.relu(self.between(self.first(active)), inplace=True))
        added: Tensor = inner + (x if self.shortcut is None else self.shortcut(active))
        return added


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> tuple[Tensor, float]:
    """Which images ``model`` gets right, bool [n], and its mean cross entropy (nats). It is left in the mode it was in.

    Args:
        images: float32 [n, channels, size, size]. labels: int64 [n]. batch_size: images a forward pass.
    """
    was_training = model.training
    model.eval()
    right, loss = [], 0.0
    for begin in range(0, len(labels), batch_size):
        y = labels[begin : begin + batch_size]
        logits = model(images[begin : begin + batch_size])
        right.append(logits.argmax(1) == y)
        loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    return torch.cat(right), loss / len(labels)
