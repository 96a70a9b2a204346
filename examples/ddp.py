"""Distributed data parallel: every rank draws the same global batch by priority, and learns from all its losses.

    torchrun --nproc-per-node 2 examples/ddp.py

What changes in a DDP script is the loader and one line of the step: no DistributedSampler, no all_gather.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import fastprio


def main(epochs: int = 3) -> None:
    """Trains a small network on scikit-learn's digits; rank 0 prints."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    dataset = torch.utils.data.TensorDataset(x, y)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = fastprio.PriorityLoader(dataset, 128 // dist.get_world_size(), epochs=epochs)
    for epoch in range(epochs):
        for images, labels in loader:
            losses = F.cross_entropy(model(images), labels, reduction="none")
            loss = loader.step(losses)  # starts gathering all ranks' losses; the next draw applies them
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        stats = loader.stats()
        if dist.get_rank() == 0:
            accuracy = (model(x).argmax(1) == y).float().mean()
            print(f"epoch {epoch}: accuracy {accuracy:.3f}, tau {stats['tau']:.2f}, score age {stats['score_age']:.1f}")
    loader.flush()
    totals = [None] * dist.get_world_size()
    dist.all_gather_object(totals, loader.store.tree.total)
    if dist.get_rank() == 0:
        print("all ranks keep the same scores" if len(set(totals)) == 1 else f"ranks differ: {totals}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
