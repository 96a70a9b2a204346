"""Accelerate, on one process or several: prioritized batches, interrupted in the middle of an epoch, and gone on.

python examples/accelerate_digits.py
torchrun --nproc-per-node 2 examples/accelerate_digits.py
"""

import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import fastprio
from fastprio.integrations.accelerate import prepare

EPOCHS = 4
pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
pixels, held_out = pixels.float() / 16, torch.arange(len(digits)) % 5 == 0
train = TensorDataset(pixels[~held_out], digits[~held_out])


def start():
    """Everything anew, as a script does."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    loader = fastprio.PriorityLoader(train, 32 // accelerator.num_processes, epochs=EPOCHS)  # its size is a process's
    return accelerator, model, optimizer, loader, prepare(accelerator, loader)


def run(accelerator, model, optimizer, loader, batches, first=0, stop=None):
    for epoch in range(first, EPOCHS):
        batches.set_epoch(epoch)
        for number, (inputs, labels) in enumerate(batches):
            loss = loader.step(F.cross_entropy(model(inputs), labels, reduction="none"))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            if (epoch, number) == stop:
                return


interrupted = start()
folder = broadcast_object_list([tempfile.mkdtemp()])[0]  # the first process's, for all
run(*interrupted, stop=(1, 20))
interrupted[0].save_state(folder)
interrupted[0].wait_for_everyone()

accelerator, model, optimizer, loader, batches = start()
accelerator.load_state(folder)
run(accelerator, model, optimizer, loader, batches, first=1)  # the rest of epoch 1, and the others
accuracy = (model(pixels[held_out]).argmax(1) == digits[held_out]).float().mean().item()
accelerator.print(f"accuracy {accuracy:.3f}; {loader.store.stats()['coverage']:.0%} of the examples were scored")
