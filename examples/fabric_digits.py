"""Fabric: a sampler, PriorityCheckpoint in the saved state, and an exact resume from the middle of an epoch.

For several processes give Fabric(devices=...); everything else stays.
"""

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastprio
from fastprio.integrations.fabric import PriorityCheckpoint

EPOCHS, BATCH, SAVE_AT = 3, 32, 80
x, y = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(x / 16).float(), torch.tensor(y))


def train(fabric, resume=False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), 3e-3))
    store = fastprio.ScoreStore(len(data), policy="loss", epochs=EPOCHS)
    sampler = fastprio.PrioritySampler(store, batch_size=BATCH * fabric.world_size)
    loader = fabric.setup_dataloaders(DataLoader(data, BATCH, sampler=sampler))
    state = {"model": model, "optimizer": optimizer, "priority": PriorityCheckpoint(loader), "epoch": 0, "step": 0}
    if resume:
        fabric.load("middle.ckpt", state)
    for epoch in range(state["epoch"], EPOCHS):
        state["epoch"] = epoch
        for inputs, labels in loader:
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            loss = sampler.step(losses)  # records them; mean(weight * loss)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            state["step"] += 1
            if state["step"] == SAVE_AT:
                fabric.save("middle.ckpt", state)
    return model, sampler


if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    model, sampler = train(fabric)
    again, _ = train(fabric, resume=True)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    accuracy = (model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean()
    print(f"accuracy {accuracy:.3f}, {sampler.stats()['effective_sample_size']:.0f} of {len(data)} effective examples")
    print(f"resumed at step {SAVE_AT}: {'the same' if same else 'another'} model")
