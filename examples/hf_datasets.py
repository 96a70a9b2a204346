"""Hugging Face datasets: a batch drawn by priority is read in one go, and carries its indices with it.

python examples/hf_datasets.py
"""

import datasets
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import fastprio

EPOCHS = 4
x, y = load_digits(return_X_y=True)
whole = datasets.Dataset.from_dict({"pixels": (x / 16).astype("float32"), "digit": y}).with_format("torch")
# An index means a row of the data set that the loader is given, here after the split.
parts = whole.train_test_split(0.2, seed=0)
train, test = parts["train"], parts["test"]

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
loader = fastprio.PriorityLoader(fastprio.WithIndex(train), 32, epochs=EPOCHS, num_workers=2)
for _ in range(EPOCHS):
    for indices, batch in loader:
        losses = F.cross_entropy(model(batch["pixels"]), batch["digit"], reduction="none")
        loss = loader.step(losses, indices=indices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

hardest = loader.store.column("loss").argsort()[-5:][::-1].tolist()
print("hardest rows:", hardest, "which are", train[hardest]["digit"].tolist())
accuracy = (model(test["pixels"][:]).argmax(1) == test["digit"][:]).float().mean().item()
print(f"accuracy {accuracy:.3f}")
