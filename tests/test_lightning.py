"""Lightning draws as a plain loop does, slices by rank, and goes on exactly from every checkpoint."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_helpers import Numbered, interleaved, state_of
from torch.utils.data import DataLoader

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402

from fastprio.integrations.lightning import PriorityCallback  # noqa: E402

N, BATCH, EPOCHS = 50, 8, 3
STEPS = 7  # an epoch
EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Model(lightning.LightningModule):
    """Losses depend on the example, the step and the model, so that whatever is lost on resume shows."""

    def __init__(self, sampler, fault=None):
        super().__init__()
        self.sampler, self.fault = sampler, fault
        self.linear = torch.nn.Linear(2, 1)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        torch.nn.init.constant_(self.linear.weight, 0.1)
        torch.nn.init.constant_(self.linear.bias, 0.2)
        self.trained, self.ahead = [], []

    def training_step(self, batch, number):
        indices, inputs = batch
        if self.fault == "forgets" and int(self.count) == 2:
            return self.linear(inputs).mean()
        assert indices.tolist() == self.sampler.indices[: len(indices)].tolist()
        step = int(self.count)
        self.trained.append((step, indices.tolist(), self.sampler.weights.tolist()))
        self.ahead.append(self.sampler.journal.outstanding_batches - 1)
        if self.fault == step:
            raise ValueError("a fault")
        self.count += 1
        losses = (self.linear(inputs)[:, 0] - torch.sin(indices * 7.0)) ** 2 + 0.01
        return self.sampler.step(losses)

    def validation_step(self, batch, number):
        return None

    def test_step(self, batch, number):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def sampler_of(**arguments):
    return PrioritySampler(ScoreStore(N, arguments.pop("policy", "loss"), epochs=EPOCHS), batch_size=BATCH, **arguments)


def loader_of(sampler, workers=0, batch=BATCH, **arguments):
    return DataLoader(Numbered(N), batch, sampler=sampler, num_workers=workers, **arguments)


def trainer_of(folder, *callbacks, **arguments):
    arguments = {"max_epochs": EPOCHS, "logger": False, "accelerator": "cpu", "devices": 1, **arguments}
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": bool(callbacks)}
    return lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**silent, **arguments})


def saving(folder, **when):
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)


def fit(folder, *callbacks, workers=0, ckpt=None, fault=None, validate=False, sampler=None, **arguments):
    """(steps trained, store, parameters) of a fit with everything made anew."""
    sampler = sampler_of() if sampler is None else sampler
    model = Model(sampler, fault)
    trainer = trainer_of(folder, PriorityCallback(sampler), *callbacks, **arguments)
    loaders = (loader_of(sampler, workers), DataLoader(Numbered(N), 10) if validate else None)
    trainer.fit(model, *loaders, ckpt_path=ckpt)
    return model.trained, state_of(sampler.store), [p.detach().numpy().tobytes() for p in model.parameters()], model


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def plain_loop(sampler, loader, epochs=EPOCHS, stop=None):
    """The steps of a loop without a framework, of the same model; its first epoch may stop after so many."""
    model = Model(sampler)
    optimizer = model.configure_optimizers()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            optimizer.zero_grad()
            model.training_step(batch, number).backward()
            optimizer.step()
            if len(model.trained) == stop:
                break
    return model.trained


@pytest.mark.parametrize(("workers", "ahead"), [(0, [0] * 7), (1, [2] * 5 + [1, 0]), (2, [4] * 3 + [3, 2, 1, 0])])
def test_one_process_draws_as_a_plain_loop_and_as_far_ahead(tmp_path, workers, ahead):
    sampler = sampler_of()
    expected = plain_loop(sampler, loader_of(sampler, workers))
    trained, store, _, model = fit(tmp_path, workers=workers)
    assert trained == expected
    assert store == state_of(sampler.store)
    assert model.ahead == ahead * EPOCHS
    first = [index for _, indices, _ in trained[:STEPS] for index in indices]
    assert sorted(first) == list(range(N))
    assert len(set(map(str, trained[STEPS : 2 * STEPS]))) == STEPS


def test_gradients_are_accumulated_over_whole_batches_and_over_parts_of_one(tmp_path):
    """Two loader batches of 4 are one of the sampler's batches of 8, or two of its batches of 4."""
    sampler = sampler_of()
    model = Model(sampler)
    trainer = trainer_of(tmp_path, PriorityCallback(sampler), accumulate_grad_batches=2, max_epochs=2)
    trainer.fit(model, loader_of(sampler, 1, batch=4))
    first = [index for _, indices, _ in model.trained[:13] for index in indices]
    assert sorted(first) == list(range(N))
    assert trainer.global_step == 14
    assert sampler.store.clock.step == len(model.trained) == 26


class WithLoader(Model):
    def train_dataloader(self):
        return {"priority": loader_of(self.sampler), "other": DataLoader(range(60), 4)}

    def training_step(self, batch, number):
        assert len(batch["other"]) > 0
        return super().training_step(batch["priority"], number)


def test_a_loader_of_the_modules_own_among_others_is_found(tmp_path):
    model = WithLoader(sampler_of())
    trainer_of(tmp_path, PriorityCallback(model.sampler), limit_train_batches=STEPS).fit(model)
    assert model.trained == fit(tmp_path)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_fit_counts_its_epochs_from_zero(tmp_path, workers):
    """Lightning says the epoch's number only after workers have been given their first indices."""
    sampler = sampler_of()
    fit(tmp_path, sampler=sampler, workers=workers, max_epochs=2)
    assert sampler.store.clock.epoch == 1
    fit(tmp_path, sampler=sampler, workers=workers, max_epochs=1)
    assert sampler.store.clock.epoch == 0


def rest_of(whole, step):
    trained, store, parameters, _ = whole
    return trained[step:], store, parameters


@pytest.mark.parametrize("workers", [0, 2])
def test_every_checkpoint_of_a_step_goes_on_exactly(tmp_path, workers):
    whole = fit(tmp_path, saving(tmp_path, every_n_train_steps=1), workers=workers)
    paths = sorted(tmp_path.glob("*.ckpt"), key=step_of)
    assert [step_of(path) for path in paths] == list(range(1, EPOCHS * STEPS + 1))
    for path in paths[:-1] if workers == 0 else [paths[at] for at in (2, 6, 7, 12)]:
        assert fit(tmp_path / "again", workers=workers, ckpt=path)[:3] == rest_of(whole, step_of(path)), path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("when", "arguments", "steps"),
    [
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}, [7, 14]),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {"validate": True}, [7, 14]),
        (
            {"every_n_epochs": 1, "save_on_train_epoch_end": False},
            {"validate": True, "val_check_interval": 3},
            [3, 6, 10, 13, 17],
        ),
        ({"every_n_train_steps": 1}, {"limit_train_batches": 5}, [1, 4, 5, 6, 9, 10, 11]),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {"limit_train_batches": 5}, [5, 10]),
    ],
)
def test_a_checkpoint_of_any_moment_goes_on_exactly(tmp_path, workers, when, arguments, steps):
    whole = fit(tmp_path, saving(tmp_path, **when), workers=workers, **arguments)
    paths = {step_of(path): path for path in tmp_path.glob("*.ckpt")}
    assert set(steps) <= set(paths)
    for step in steps if workers == 0 else steps[:3]:
        found = fit(tmp_path / "again", workers=workers, ckpt=paths[step], **arguments)
        assert found[:3] == rest_of(whole, step), step


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_of_a_failure_goes_on_with_the_batch_that_failed(tmp_path, workers):
    whole = fit(tmp_path, workers=workers)
    for step in (3, 7):
        folder = tmp_path / str(step)
        with pytest.raises(ValueError, match="a fault"):
            fit(folder, OnExceptionCheckpoint(folder, "failed"), workers=workers, fault=step)
        assert fit(folder, workers=workers, ckpt=folder / "failed.ckpt")[:3] == rest_of(whole, step)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_steps_go_on_where_max_steps_ended(tmp_path, workers):
    whole = fit(tmp_path, workers=workers, max_epochs=-1, max_steps=13)
    for step in (3, 7, 10):
        folder = tmp_path / str(step)
        fit(folder, saving(folder, every_n_train_steps=1), workers=workers, max_epochs=-1, max_steps=step)
        ckpt = next(path for path in folder.glob("*.ckpt") if step_of(path) == step)
        found = fit(folder, workers=workers, max_epochs=-1, max_steps=13, ckpt=ckpt)
        assert found[:3] == rest_of(whole, step), step


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_max_steps_cut_off_is_gone_on_with(tmp_path, workers):
    whole = fit(tmp_path, workers=workers, max_epochs=-1, max_steps=7)
    at_its_end = saving(tmp_path / "cut", every_n_epochs=1, save_on_train_epoch_end=True)
    fit(tmp_path / "cut", at_its_end, workers=workers, max_epochs=-1, max_steps=3)
    ckpt = next((tmp_path / "cut").glob("*.ckpt"))
    assert fit(tmp_path, workers=workers, max_epochs=-1, max_steps=7, ckpt=ckpt)[:3] == rest_of(whole, 3)


class StopsAt(lightning.Callback):
    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, model, outputs, batch, number):
        trainer.should_stop = number + 1 == self.batches


@pytest.mark.parametrize("workers", [0, 2])
def test_after_an_epoch_that_was_stopped_early_comes_the_next(tmp_path, workers):
    sampler = sampler_of()
    expected = plain_loop(sampler, loader_of(sampler, workers), epochs=2, stop=3)
    at_its_end = saving(tmp_path, every_n_epochs=1, save_on_train_epoch_end=True)
    stopped = fit(tmp_path, StopsAt(3), at_its_end, workers=workers)
    ckpt = next(tmp_path.glob("*.ckpt"))
    resumed = fit(tmp_path / "again", workers=workers, ckpt=ckpt, max_epochs=2)
    assert (stopped[0], resumed[0]) == (expected[:3], expected[3:])
    assert len(resumed[0]) == STEPS


def test_testing_a_checkpoint_leaves_the_store_as_it_is(tmp_path):
    sampler = sampler_of()
    model = Model(sampler)
    trainer = trainer_of(tmp_path, PriorityCallback(sampler), saving(tmp_path, every_n_train_steps=3))
    trainer.fit(model, loader_of(sampler))
    before = state_of(sampler.store)
    ckpt = min(tmp_path.glob("*.ckpt"), key=step_of)
    trainer.test(model, DataLoader(Numbered(N), 10), ckpt_path=ckpt, verbose=False)
    assert state_of(sampler.store) == before


class OfRank(lightning.Callback):
    """Leaves behind what a rank has trained on: ranks are processes of their own."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, model):
        sampler = trainer.train_dataloader.sampler
        found = model.trained, model.ahead, state_of(sampler.store), type(sampler).__name__, sampler.store.clock.step
        torch.save(found, self.folder / f"{trainer.global_rank}.pt")


def fit_two(folder, *callbacks, workers=0, ckpt=None, **arguments):
    """[(steps trained, batches ahead, store, sampler's class, updates of the store)] of each of two processes."""
    folder.mkdir(exist_ok=True)
    sampler = sampler_of()
    assert sampler.num_replicas == 1  # there is no group yet, and Lightning will start it
    model, ranks = Model(sampler), {"devices": 2, "strategy": "ddp_fork", "num_nodes": 1, "max_epochs": 2, **arguments}
    trainer = trainer_of(folder, PriorityCallback(sampler), OfRank(folder), *callbacks, **ranks)
    trainer.fit(model, loader_of(sampler, workers, batch=BATCH // 2), ckpt_path=ckpt)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(autouse=True)
def _one_thread():
    """Forked processes must not wait for a thread pool that only their parent has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_slice_one_global_sequence_and_keep_one_store(tmp_path, workers):
    """A sampler that was made before Lightning started its process group, and a plain DataLoader."""
    first, second = fit_two(tmp_path, workers=workers)
    assert first[3] == second[3] == "PrioritySampler"
    assert first[2] == second[2]
    assert first[1] == second[1]
    assert max(first[1]) == 2 * workers  # wrapped by Lightning it would have been the whole epoch
    alone = fit(tmp_path, workers=workers, max_epochs=2)[0]
    epoch = []
    for (step, mine, _), (_, theirs, _), (_, both, _) in zip(first[0], second[0], alone, strict=True):
        together = interleaved([mine, theirs])
        if step < STEPS:  # losses differ by rounding: DDP's gradients are of two halves
            assert together == both
            epoch += together
    assert sorted(epoch) == list(range(N))
    assert len(first[0]) == 2 * STEPS == first[4]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_checkpoint_of_rank_zero_restores_both_processes(tmp_path, workers):
    whole = fit_two(tmp_path, saving(tmp_path, every_n_train_steps=1), workers=workers)
    for step in (3, 7, 9) if workers == 0 else (3,):
        ckpt = next(path for path in tmp_path.glob("*.ckpt") if step_of(path) == step)
        resumed = fit_two(tmp_path / str(step), workers=workers, ckpt=ckpt)
        for before, after in zip(whole, resumed, strict=True):
            assert after[0] == before[0][step:], step
            assert after[2] == before[2]


class Validated(lightning.Callback):
    def __init__(self):
        self.after = []

    def on_validation_end(self, trainer, model):
        self.after.append((trainer.current_epoch, trainer.global_step))


def test_a_plan_ends_the_epoch_where_it_ends(tmp_path):
    """InfoBatch makes epochs shorter than len(loader), at which Lightning would wait with all it does at their end."""

    def run(folder, *callbacks, ckpt=None):
        sampler, seen = sampler_of(policy="infobatch"), Validated()
        ended = {"accumulate_grad_batches": 2, "num_sanity_val_steps": 0}
        return fit(folder, seen, *callbacks, sampler=sampler, ckpt=ckpt, validate=True, **ended), seen.after

    whole, validated = run(tmp_path, saving(tmp_path, every_n_train_steps=1))
    lengths = [len(indices) for _, indices, _ in whole[0]]
    assert lengths == [8] * 6 + [2] + [8] * 4 + [2] + [8] * 6 + [2]
    assert validated == [(0, 4), (1, 4 + 3), (2, 4 + 3 + 4)]
    for path in tmp_path.glob("*.ckpt"):
        batches = {1: 2, 2: 4, 3: 6, 4: 7, 5: 9, 6: 11, 7: 12, 8: 14, 9: 16, 10: 18, 11: 19}[step_of(path)]
        if batches < len(lengths):
            assert run(tmp_path / "again", ckpt=path)[0][:3] == rest_of(whole, batches), batches


class Kept(Logger):
    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("fastprio/") for name in metrics):
            self.metrics.append((step, metrics))

    def log_hyperparams(self, *arguments, **named):
        pass


@pytest.mark.parametrize(("every", "steps"), [(None, [7, 14, 21]), (3, [3, 6, 10, 13, 17, 20])])
def test_the_callback_logs_what_the_sampler_knows(tmp_path, every, steps):
    sampler, logger = sampler_of(), Kept()
    trainer = trainer_of(tmp_path, PriorityCallback(sampler, log_every=every), logger=logger, log_every_n_steps=1)
    trainer.fit(Model(sampler), loader_of(sampler))
    assert [step for step, _ in logger.metrics] == steps
    assert logger.metrics[0][1]["fastprio/coverage"] == min(steps[0] * BATCH, N) / N
    assert logger.metrics[0][1].keys() == {f"fastprio/{name}" for name in sampler.stats()}


class Rebuilt(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __getitem__(self, index):
        return index, torch.ones(2)

    def __len__(self):
        return self.n


def test_a_batch_sampler_is_refused_on_two_processes_before_it_is_rebuilt_around_a_plain_one(tmp_path):
    sampler = sampler_of()
    trainer = trainer_of(tmp_path, PriorityCallback(sampler), devices=2, strategy="ddp_fork")
    loader = DataLoader(Numbered(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // 2, True))
    with pytest.raises(Exception, match="give the loader batch_size= and sampler=PrioritySampler"):
        trainer.fit(Model(sampler), loader)


def test_a_batch_sampler_is_kept_on_one_process(tmp_path):
    sampler = sampler_of()
    model = Model(sampler)
    batches = DataLoader(Numbered(N), batch_sampler=PriorityBatchSampler(sampler, BATCH))
    trainer_of(tmp_path, PriorityCallback(sampler)).fit(model, batches)
    assert model.trained == fit(tmp_path)[0]


@pytest.mark.parametrize(
    ("loader", "more", "message"),
    [
        (lambda s: loader_of(sampler_of()), {}, "sampler is PrioritySampler, not the callback's"),
        (lambda s: DataLoader(Numbered(N), BATCH, shuffle=True), {}, "sampler is RandomSampler, not the callback's"),
        (loader_of, {"overfit_batches": 2}, "sampler is SequentialSampler, not the callback's: .*no overfit_batches"),
        (lambda s: DataLoader(Rebuilt(N + 1), BATCH, sampler=s), {}, "store has 50 examples, the train data set 51"),
        (lambda s: loader_of(s, batch=3), {}, "batch_size is 8: expected that of all processes, 1 . 3 = 3"),
        (lambda s: PriorityLoader(Numbered(N), BATCH, policy=s.store), {}, "not the callback's"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_batch(tmp_path, loader, more, message):
    sampler = sampler_of()
    model = Model(sampler)
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, PriorityCallback(sampler), **more).fit(model, loader(sampler))
    assert model.trained == []


def test_a_loader_with_a_state_of_its_own_is_refused(tmp_path):
    loader = PriorityLoader(Numbered(N), BATCH)
    with pytest.raises(ValueError, match="PriorityLoader has a state of its own"):
        trainer_of(tmp_path, PriorityCallback(loader.sampler)).fit(Model(loader.sampler), loader)


def test_too_small_a_lag_names_the_least(tmp_path):
    sampler = sampler_of(lag=3)
    with pytest.raises(ValueError, match="lag = 3: this loader reads 4 batches ahead, so lag >= 4"):
        trainer_of(tmp_path, PriorityCallback(sampler)).fit(Model(sampler), loader_of(sampler, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_was_not_stepped_is_found_at_once(tmp_path, workers):
    sampler = sampler_of()
    model = Model(sampler, "forgets")
    with pytest.raises(RuntimeError, match="batch 2 of epoch 0 was neither stepped nor skipped"):
        trainer_of(tmp_path, PriorityCallback(sampler)).fit(model, loader_of(sampler, workers))
    assert len(model.trained) == 2


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="sampler: expected a PrioritySampler, got PriorityLoader"):
        PriorityCallback(PriorityLoader(Numbered(N), BATCH))
    with pytest.raises(ValueError, match="log_every = 0"):
        PriorityCallback(sampler_of(), log_every=0)


def test_it_is_a_callback_of_pytorch_lightning_where_that_is_imported():
    code = """
import pytorch_lightning, sys
from fastprio.integrations.lightning import PriorityCallback
assert issubclass(PriorityCallback, pytorch_lightning.Callback), PriorityCallback.__mro__
assert "lightning.pytorch" not in sys.modules
"""
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "lightning_digits.py"), run_name="__main__")
    assert "resumed at step 100: the same model" in capsys.readouterr().out
