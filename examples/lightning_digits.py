"""Lightning: a sampler, a callback, one line in training_step, and an exact resume from the middle of an epoch.

For several processes give Trainer(devices=...), and the sampler the batch size of all of them.
"""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastprio
from fastprio.integrations.lightning import PriorityCallback

EPOCHS, BATCH, DEVICES = 3, 32, 1
x, y = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(x / 16).float(), torch.tensor(y))


class Digits(L.LightningModule):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch, number):
        inputs, labels = batch
        losses = F.cross_entropy(self.model(inputs), labels, reduction="none")
        return self.sampler.step(losses)  # records them; mean(weight * loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def fit(ckpt=None):
    store = fastprio.ScoreStore(len(data), policy="loss", epochs=EPOCHS)
    sampler = fastprio.PrioritySampler(store, batch_size=BATCH * DEVICES)
    model = Digits(sampler)
    saved = ModelCheckpoint("checkpoints", every_n_train_steps=100)  # in the middle of the second epoch
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [PriorityCallback(sampler), saved]
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=DEVICES, callbacks=callbacks, **quiet)
    trainer.fit(model, DataLoader(data, BATCH, sampler=sampler), ckpt_path=ckpt)
    return model.cpu(), sampler, saved.best_model_path


if __name__ == "__main__":
    torch.manual_seed(0)
    model, sampler, path = fit()
    again, _, _ = fit(path)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    accuracy = (model.model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean()
    print(f"accuracy {accuracy:.3f}, {sampler.stats()['effective_sample_size']:.0f} of {len(data)} effective examples")
    print(f"resumed at step 100: {'the same' if same else 'another'} model")
