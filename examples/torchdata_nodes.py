"""torchdata.nodes: threads draw, fetch and prefetch prioritized batches; a run is interrupted and goes on exactly.

python examples/torchdata_nodes.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchdata.nodes import Loader, ParallelMapper, Prefetcher, SamplerWrapper

import fastprio

EPOCHS, BATCH, WORKERS, PREFETCH = 4, 32, 1, 2
pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
pixels, held_out = pixels.float() / 16, torch.arange(len(digits)) % 5 == 0
train = torch.utils.data.TensorDataset(pixels[~held_out], digits[~held_out])


def start():
    """Everything anew, as a script does."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    store = fastprio.ScoreStore(len(train), "loss", epochs=EPOCHS)
    # With lag= the threads' timing cannot change the batches. It is what the nodes below draw ahead.
    sampler = fastprio.PrioritySampler(store, batch_size=BATCH, lag=2 * WORKERS + PREFETCH)
    node = SamplerWrapper(fastprio.PriorityBatchSampler(sampler, BATCH))
    node = ParallelMapper(node, lambda indices: train[indices], num_workers=WORKERS)
    return Loader(Prefetcher(node, PREFETCH)), sampler, model, torch.optim.Adam(model.parameters(), lr=3e-3)


def run(loader, sampler, model, optimizer, steps):
    while steps > 0:
        for inputs, labels in loader:
            loss = sampler.step(F.cross_entropy(model(inputs), labels, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps -= 1
            if steps == 0:
                break


loader, sampler, *rest = start()
run(loader, sampler, *rest, steps=70)
# The loader's state says where it stands; what is in flight, and what was learnt, is in the store's.
saved = [loader.state_dict(), sampler.store.state_dict(), *(part.state_dict() for part in rest)]

loader, sampler, model, optimizer = start()
for part, state in zip((loader, sampler.store, model, optimizer), saved, strict=True):
    part.load_state_dict(state)
run(loader, sampler, model, optimizer, steps=EPOCHS * 45 - 70)  # 45 batches an epoch
accuracy = (model(pixels[held_out]).argmax(1) == digits[held_out]).float().mean().item()
print(f"accuracy {accuracy:.3f} after epoch {sampler.epoch}")
