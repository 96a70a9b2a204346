"""Small image classifiers that a few CPU cores train in minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two convolutions, each halving the image, and two linear layers.

    Args:
        size: height and width of the images in pixels, a multiple of 4 (28 for Fashion-MNIST, 8 for digits).
        classes: number of outputs.
        width: channels of the first convolution; the second has twice as many.

    Raises:
        ValueError: size is not a positive multiple of 4.

    There is neither dropout nor batch normalisation: an example's loss then depends on it and on the parameters
    alone, not on chance or on its neighbours in the batch, which is what a score should mean.
    """

    def __init__(self, size: int = 28, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f"size = {size}: expected a positive multiple of 4")
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
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
        """logits float32 [B, classes] of images float32 [B, 1, size, size]."""
        logits: Tensor = self.layers(images)
        return logits


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy (nats) of ``model``, which is left in training mode as it was.

    Args:
        images: float32 [n, 1, size, size]. labels: int64 [n]. batch_size: images a forward pass.
    """
    was_training = model.training
    model.eval()
    correct, loss = 0, 0.0
    for begin in range(0, len(labels), batch_size):
        y = labels[begin : begin + batch_size]
        logits = model(images[begin : begin + batch_size])
        correct += int((logits.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    return correct / len(labels), loss / len(labels)
