"""The Trainer's own training, but for the batches and their weights; exact resumes; batches dealt to two processes."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_helpers import Correct, Raw, flat
from rank_helpers import interleaved, on_ranks, one_thread, state_of  # noqa: F401 (a fixture)
from torch.nn import functional as F

from fastprio import PrioritySampler, ScoreStore
from fastprio.policies import LossPower

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
from fastprio.integrations.transformers import FILE, PriorityTrainer  # noqa: E402

N, BATCH, EPOCHS, CLASSES, LENGTH = 50, 8, 2, 3, 6
STEPS = 7  # batches an epoch
EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _quiet(one_thread):  # noqa: F811 (a fixture)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class Sentences(torch.utils.data.Dataset):
    """The first token is the example's index; ``extra`` is a column that the model does not take."""

    def __init__(self, n=N, tokens=False):
        self.n, self.tokens = n, tokens

    def __getitem__(self, index):
        inputs = [index, *((index * k) % N for k in range(2, LENGTH + 1))]
        labels = index % CLASSES
        if self.tokens:  # of different lengths, so that a mean over tokens is not one over sequences
            labels = [token if at <= 1 + index % (LENGTH - 1) else -100 for at, token in enumerate(inputs)]
        return {"input_ids": inputs, "labels": labels, "extra": -1}

    def __len__(self):
        return self.n


def bert(dropout=0.1):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=4 * N,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=CLASSES,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def llama():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=N, max_position_embeddings=LENGTH, **sizes)
    )


class Plain(torch.nn.Module):
    """Takes no further arguments, so the Trainer counts no items, and divides by the batches it accumulates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner = bert(dropout=0.0)

    def forward(self, input_ids, labels=None):
        logits = self.inner(input_ids=input_ids).logits
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def arguments_of(folder, **named):
    usual = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-2, "use_cpu": True}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "ignore_data_skip": True}
    return transformers.TrainingArguments(str(folder), **{**usual, **quiet, **named})


class Recorded(PriorityTrainer):
    """Remembers what it was given, and what its sampler says that was."""

    def compute_losses(self, model, inputs):
        sampler = self.sampler
        indices = inputs["input_ids"][:, 0].tolist()
        assert indices == sampler.indices.tolist()
        assert set(inputs) == {"input_ids", "labels"}
        self.trained = [*getattr(self, "trained", []), (sampler.epoch, indices, sampler.weights.tolist())]
        self.ahead = [*getattr(self, "ahead", []), sampler.journal.outstanding_batches - 1]
        return super().compute_losses(model, inputs)

    def log(self, logs, *arguments, **named):
        super().log(logs, *arguments, **named)
        self.logged = [*getattr(self, "logged", []), dict(self.state.log_history[-1])]


def train(folder, *, model=bert, data=None, resume=None, arguments=None, **named):
    """A trainer that has trained."""
    data = Sentences(tokens=model is llama) if data is None else data
    trainer = Recorded(
        model(), arguments_of(folder, **(arguments or {})), train_dataset=data, eval_dataset=data, **named
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def found_by(trainer):
    parameters = [p.detach().numpy().tobytes() for p in trainer.model.parameters()]
    return state_of(trainer.sampler.store), parameters, trainer.state.global_step


@pytest.mark.parametrize(("workers", "accumulated"), [(0, 1), (0, 3), (2, 1), (2, 3)])
def test_batches_run_as_far_ahead_as_documented_and_each_is_credited(tmp_path, workers, accumulated):
    arguments = {"dataloader_num_workers": workers, "gradient_accumulation_steps": accumulated}
    n = 15 * BATCH + 2
    trainer = train(tmp_path, data=Wide(n), arguments=arguments)
    batches = 16
    ahead = [2 * workers + 1 + (accumulated - 1 - k % accumulated) for k in range(batches)]
    left = [min(far, batches - 1 - k) for k, far in enumerate(ahead)]
    # The last group is of what is left.
    assert trainer.ahead == left * EPOCHS
    assert trainer.sampler.lookahead == max(ahead)
    assert trainer.sampler.store.clock.step == len(trainer.trained) == EPOCHS * batches
    assert [epoch for epoch, _, _ in trainer.trained] == [0] * batches + [1] * batches
    first = [index for epoch, indices, _ in trainer.trained for index in indices if epoch == 0]
    assert sorted(first) == list(range(n))
    assert trainer.state.global_step == EPOCHS * -(-batches // accumulated)


class Wide(Sentences):
    """More examples, and few tokens."""

    def __getitem__(self, index):
        return {**super().__getitem__(index % N), "input_ids": [index, *[0] * (LENGTH - 1)]}


class Gradients(transformers.TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **named):
        self.steps.append([p.grad.numpy().copy() for p in model.parameters() if p.grad is not None])


class Following(transformers.Trainer):
    """The plain Trainer on given batches."""

    order = ()

    def _get_train_sampler(self, train_dataset=None):
        return list(self.order)


MODELS = [lambda: bert(dropout=0.0), llama, Plain]


def same(ones, others):
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("model", MODELS, ids=["classes", "tokens", "not counted"])
def test_with_policy_uniform_gradients_are_the_plain_trainers(tmp_path, model, accumulated):
    """With batches that are not all full, and sequences that are not all as long."""
    arguments = {"gradient_accumulation_steps": accumulated, "num_train_epochs": 1, "max_grad_norm": 0}
    ours, theirs, data = Gradients(), Gradients(), Sentences(tokens=model is llama)
    trainer = train(tmp_path, model=model, policy="uniform", callbacks=[ours], arguments=arguments)
    if model is MODELS[0]:
        # This model leaves num_items_in_batch aside, and the Trainer does not notice: with so many batches accumulated
        # its gradients are so many times too large. Those of one large batch are right.
        larger = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": accumulated * BATCH}
        arguments = {**arguments, **larger}
    plain = Following(model(), arguments_of(tmp_path, **arguments), train_dataset=data, callbacks=[theirs])
    plain.order = [index for _, indices, _ in trainer.trained for index in indices]
    plain.train()
    same(ours.steps, theirs.steps)
    logged = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert logged == pytest.approx([logs["loss"] for logs in plain.state.log_history if "loss" in logs], rel=1e-5)


def test_each_examples_part_of_the_gradient_is_times_its_weight(tmp_path):
    """Against the definition, for a language model and groups of batches of different size."""
    ours = Gradients()
    arguments = {"gradient_accumulation_steps": 3, "max_grad_norm": 0, "learning_rate": 0.0}
    trainer = train(tmp_path, model=llama, policy=LossPower(beta=1.0), callbacks=[ours], arguments=arguments)
    groups = [trainer.trained[STEPS:][k : k + 3] for k in range(0, STEPS, 3)]
    data, expected = Sentences(tokens=True), []
    for group in groups:
        model, total, counted = llama(), 0.0, 0
        for _, indices, weights in group:
            rows = [data[index] for index in indices]
            inputs, labels = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels"))
            logits = model(inputs).logits
            each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
            total = total + (each.sum(1) * torch.tensor(weights)).sum()
            counted += int((labels[:, 1:] != -100).sum())
        assert max(weight for _, _, weights in group for weight in weights) < 1 or len(set(group[0][2])) > 1
        (total / counted).backward()
        expected.append([p.grad.numpy() for p in model.parameters()])
    same(ours.steps[len(groups) :], expected)


def test_sequences_are_credited_with_the_mean_of_their_tokens(tmp_path):
    trainer = train(tmp_path, model=llama, policy=Raw(), arguments={"learning_rate": 0.0, "num_train_epochs": 1})
    data, model = Sentences(tokens=True), llama()
    rows = [data[index] for index in range(N)]
    inputs, labels = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        each = F.cross_entropy(model(inputs).logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    means = each.sum(1) / (labels[:, 1:] != -100).sum(1)
    priorities = torch.from_numpy(trainer.sampler.store.tree.priorities)
    torch.testing.assert_close(priorities, means, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("workers", "accumulated"), [(0, 1), (0, 3), (2, 3)])
def test_every_checkpoint_goes_on_exactly(tmp_path, workers, accumulated):
    """With dropout, in the middle of an epoch and at its end, and where the last group of batches is smaller."""
    arguments = {
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = train(tmp_path, arguments=arguments)
    an_epoch = -(-STEPS // accumulated)
    for step in range(1, EPOCHS * an_epoch):
        resumed = train(tmp_path / "again", resume=str(tmp_path / f"checkpoint-{step}"), arguments=arguments)
        epoch, rest = divmod(step, an_epoch)
        batches = epoch * STEPS + min(rest * accumulated, STEPS)
        assert resumed.trained == whole.trained[batches:], step
        assert found_by(resumed) == found_by(whole), step
        logged = [{k: logs[k] for k in ("loss", "epoch", "step", "fastprio/coverage")} for logs in whole.logged[:-1]]
        again = [{k: logs[k] for k in ("loss", "epoch", "step", "fastprio/coverage")} for logs in resumed.logged[:-1]]
        assert again == logged[step:], step


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_a_plan_makes_shorter_go_on_exactly(tmp_path, workers):
    arguments = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": workers}
    whole = train(tmp_path, policy="infobatch", arguments=arguments)
    epochs = [epoch for epoch, _, _ in whole.trained]
    assert [epochs.count(epoch) for epoch in range(4)] == [7, 5, 5, 7]
    for step in range(1, len(epochs), 2 if workers == 0 else 5):
        checkpoint = str(tmp_path / f"checkpoint-{step}")
        resumed = train(tmp_path / "again", policy="infobatch", resume=checkpoint, arguments=arguments)
        assert resumed.trained == whole.trained[step:], step
        assert found_by(resumed) == found_by(whole), step


def test_evaluation_is_the_plain_trainers(tmp_path):
    """In the middle of training too: it neither draws nor steps, and sees the same losses."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 5}
    trainer = train(tmp_path, model=MODELS[0], arguments=evaluated)
    assert trainer.trained == train(tmp_path / "without", model=MODELS[0]).trained
    before = state_of(trainer.sampler.store)
    found = trainer.evaluate()
    plain = transformers.Trainer(trainer.model, trainer.args, eval_dataset=Sentences())
    assert found["eval_loss"] == plain.evaluate()["eval_loss"]
    steps = [logs["step"] for logs in trainer.logged if "eval_loss" in logs]
    assert steps == [3, 6, 9, 12, 14, 14]  # at training's end, and the one asked for here
    assert state_of(trainer.sampler.store) == before


class Smooth(Recorded):
    """Losses of its own, and what else a policy asks for."""

    def compute_losses(self, model, inputs):
        super().compute_losses(model, inputs)
        logits = model(input_ids=inputs["input_ids"]).logits
        losses = F.cross_entropy(logits, inputs["labels"], reduction="none", label_smoothing=0.1)
        return losses, {"correct": (logits.argmax(1) == inputs["labels"]).float()}


def test_losses_and_observations_of_ones_own(tmp_path):
    arguments = arguments_of(tmp_path, num_train_epochs=1, learning_rate=0.0)
    trainer = Smooth(bert(dropout=0.0), arguments, train_dataset=Sentences(), policy=Correct())
    trainer.train()
    inputs, labels = (
        torch.tensor([Sentences()[index][name] for index in range(N)]) for name in ("input_ids", "labels")
    )
    with torch.no_grad():
        logits = bert(dropout=0.0).eval()(input_ids=inputs).logits
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    store = trainer.sampler.store
    torch.testing.assert_close(torch.from_numpy(store.tree.priorities), losses, rtol=1e-4, atol=1e-6)
    assert store.column("correct").tolist() == (logits.argmax(1) == labels).float().tolist()


def test_a_sampler_of_ones_own_with_lag_makes_workers_not_matter(tmp_path):
    def run(workers, lag):
        sampler = PrioritySampler(ScoreStore(N, epochs=EPOCHS), batch_size=BATCH, lag=lag, scheme="iid")
        arguments = {"dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
        return train(tmp_path, sampler=sampler, arguments=arguments).trained

    assert run(0, 6) == run(2, 6)
    with pytest.raises(ValueError, match="lag = 5: this loader reads 6 batches ahead, so lag >= 6"):
        run(2, 5)


def test_resuming_asks_for_ignore_data_skip_and_for_a_checkpoint_of_its_own(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 1}
    train(tmp_path, arguments=saving)
    with pytest.raises(ValueError, match="ignore_data_skip = False: expected True to resume"):
        train(tmp_path, resume=True, arguments={**saving, "ignore_data_skip": False})
    assert torch.load(tmp_path / "checkpoint-3" / FILE, weights_only=True).keys() == {"store", "sampler"}
    os.remove(tmp_path / "checkpoint-3" / FILE)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3.*expected a checkpoint of a PriorityTrainer"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-3"), arguments=saving)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_more_than_data_parallel_processes_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(transformers.Trainer, "get_tp_size", lambda self: 2)
        with pytest.raises(ValueError, match="tensor, context and sequence parallel = 2: expected 1"):
            train(tmp_path)
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="n_gpu = 2: expected 1; start a process for each GPU"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("named", "arguments", "error", "message"),
    [
        ({}, {"auto_find_batch_size": True}, ValueError, "auto_find_batch_size = True: expected False"),
        (
            {},
            {"train_sampling_strategy": "sequential"},
            ValueError,
            "train_sampling_strategy = 'sequential': expected 'ran",
        ),
        ({}, {"accelerator_config": {"split_batches": True}}, ValueError, "split_batches = True: expected False"),
        ({}, {"accelerator_config": {"dispatch_batches": True}}, ValueError, "dispatch_batches = True: expected False"),
        ({}, {"dataloader_in_order": False}, ValueError, "dataloader_in_order = False: expected True"),
        ({}, {"label_smoothing_factor": 0.1}, ValueError, "label_smoothing_factor = 0.1: .* override compute_losses"),
        ({"compute_loss_func": print}, {}, ValueError, "compute_loss_func = .* override compute_losses"),
        ({"data": Stream()}, {"max_steps": 3}, TypeError, "train_dataset: expected one with a length, got Stream"),
        ({"policy": ScoreStore(N + 1)}, {}, ValueError, "store has 51 examples, the train data set 50"),
        ({"sampler": PrioritySampler(N)}, {}, ValueError, "sampler: expected batch_size=8, .* got batch_size=None"),
        ({"sampler": PrioritySampler(N, batch_size=4)}, {}, ValueError, "expected batch_size=8, .* got batch_size=4"),
        (
            {"sampler": PrioritySampler(N, batch_size=8), "policy": "uniform"},
            {},
            TypeError,
            "policy, sampler: give one of them",
        ),
        (
            {"policy": "infobatch"},
            {"gradient_accumulation_steps": 2},
            ValueError,
            "gradient_accumulation_steps = 2: expected 1, because policy 'infobatch' may end epochs before",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_batch(tmp_path, named, arguments, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path, arguments=arguments, **named)


def test_labels_that_are_no_classes_ask_for_losses_of_ones_own(tmp_path):
    class Regression(Sentences):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": index / N}

    with pytest.raises(TypeError, match=r"labels torch.float32 \[8\]: expected a class .* override compute_losses"):
        train(tmp_path, data=Regression())


# Two processes, of which Accelerate deals the batches.

EVEN = 48


def of_rank(rank, folder, arguments, resume=None, sampler=None):
    """What one of two processes has trained on."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    data = Sentences(EVEN)
    given = {"per_device_train_batch_size": BATCH // 2, "ddp_backend": "gloo", **arguments}
    trainer = train(folder, data=data, resume=resume, arguments=given, sampler=sampler)
    assert trainer.args.world_size == 2
    assert trainer.sampler.store.clock.step == EPOCHS * EVEN // BATCH
    return trainer.trained, trainer.ahead, found_by(trainer)


@pytest.mark.parametrize(("workers", "accumulated"), [(0, 1), (2, 2)])
def test_two_processes_are_dealt_every_example_once_and_resume_as_one(tmp_path, workers, accumulated):
    steps = EVEN // BATCH
    arguments = {
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    (first, ahead, whole), (second, far, found) = on_ranks(2, of_rank, tmp_path, arguments)
    assert found == whole
    assert len(first) == len(second) == EPOCHS * steps
    for number in range(EPOCHS):
        parts = [[indices for epoch, indices, _ in rank if epoch == number] for rank in (first, second)]
        assert all(len(indices) == BATCH // 2 for part in parts for indices in part)
        together = [interleaved(both) for both in zip(*parts, strict=True)]
        if number == 0:
            assert sorted(flat(together)) == list(range(EVEN))
            alone = PrioritySampler(EVEN, batch_size=BATCH, seed=42)
            assert together[0] == [index for index, _ in zip(alone, range(BATCH), strict=False)]
    lags = [2 * workers + 1 + accumulated - 1 - k % accumulated for k in range(steps)]
    assert ahead == far == [min(lag, steps - 1 - k) for k, lag in enumerate(lags)] * EPOCHS
    for checkpoint in (2, 4):
        resume = str(tmp_path / f"checkpoint-{checkpoint}")
        resumed = on_ranks(2, of_rank, tmp_path / "again", arguments, resume)
        batches = checkpoint * accumulated
        assert [rank[0] for rank in resumed] == [first[batches:], second[batches:]]
        assert [rank[2] for rank in resumed] == [whole, whole]


def gradients_of_rank(rank, folder, arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    kept, given = Gradients(), {"per_device_train_batch_size": BATCH // 2, "ddp_backend": "gloo", **arguments}
    data = Sentences(EVEN, tokens=True)
    trainer = train(folder, model=llama, data=data, policy="uniform", callbacks=[kept], arguments=given)
    return [indices for _, indices, _ in trainer.trained], kept.steps


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    """Of sequences that are not all as long, so that processes have different numbers of tokens."""
    arguments = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "max_grad_norm": 0}
    (first, ours), (second, others) = on_ranks(2, gradients_of_rank, tmp_path, arguments)
    kept, data = Gradients(), Sentences(EVEN, tokens=True)
    alone = Following(llama(), arguments_of(tmp_path, **arguments), train_dataset=data, callbacks=[kept])
    alone.order = [index for both in zip(first, second, strict=True) for index in interleaved(both)]
    alone.train()
    same(ours, kept.steps)
    same(others, kept.steps)


def sliced_twice(rank, folder):
    with pytest.raises(ValueError, match="expected batch_size=8, that of all 2 processes, and num_replicas=1"):
        of_rank(rank, folder, {}, sampler=PrioritySampler(EVEN, batch_size=BATCH))
    with pytest.raises(ValueError, match=r"expected batch_size=8, that of all 2 processes, .* got batch_size=4"):
        of_rank(rank, folder, {}, sampler=PrioritySampler(EVEN, batch_size=4, num_replicas=1, rank=0))


def test_a_sampler_that_slices_is_refused_on_two_processes(tmp_path):
    on_ranks(2, sliced_twice, tmp_path)


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "transformers_digits.py"), run_name="__main__")
    assert "resumed at step 80: the same model" in capsys.readouterr().out
