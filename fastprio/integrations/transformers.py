"""The Hugging Face Trainer: one that draws its batches by priority and takes each example's loss back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fastprio.checkpoint import Checkpoint
from fastprio.policies.base import Policy
from fastprio.policies.uniform import Uniform
from fastprio.sampler import PrioritySampler
from fastprio.store import ScoreStore

FILE = "fastprio.pt"
"""In every checkpoint folder: the store, and where training stands."""
Losses = torch.Tensor | tuple[torch.Tensor, Mapping[str, Any]]


class PriorityTrainer(Trainer):
    """A Trainer whose batches are drawn by priority; evaluation is the Trainer's own.

    ::

        args = TrainingArguments(..., ignore_data_skip=True)
        trainer = PriorityTrainer(model, args, train_dataset=data, policy="loss")
        trainer.train(resume_from_checkpoint=...)

    Works as it is for models that return ``logits`` and take integer ``labels``: of an example (its loss is its cross
    entropy), or of its tokens (the mean of those of its tokens that have a label). For others override
    ``compute_losses``. A step's gradient is the Trainer's of one batch as large as all that are accumulated, with every
    example's part times its importance weight, which is 1 for policy "uniform". Of sequences the parts are sums over
    tokens, divided by the number of all tokens.

    A checkpoint has the store and the position, in a file of its own. ``train(resume_from_checkpoint=...)`` goes on
    exactly, also in the middle of an epoch, and needs ``ignore_data_skip=True``: the Trainer would skip batches by
    drawing them, from other priorities than then.

    Where a policy leaves examples out, an epoch has fewer steps than the learning rate's schedule reckons with.

    Args:
        arguments, named: the Trainer's. ``train_dataset`` has a length.
        policy: a registered name, a Policy, or a ScoreStore of the data set's length to use.
        sampler: a PrioritySampler instead of a policy, to set more. Its ``batch_size`` is that of all processes,
            without accumulation. Of several processes it has ``num_replicas=1, rank=0``, as Accelerate deals batches
            to them.

    Attributes: sampler: draws. Its ``stats()`` are logged with every training loss, under "fastprio/".

    Raises: ValueError, TypeError: what does not fit, named, when made. ``train``: ValueError if ``ignore_data_skip`` is
        not set, FileNotFoundError if the checkpoint is of another Trainer.
    """

    def __init__(
        self,
        *arguments: Any,
        policy: str | Policy | ScoreStore = "loss",
        sampler: PrioritySampler | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._check_arguments()
        data, args = self.train_dataset, self.args
        if data is None or not hasattr(data, "__len__"):
            raise TypeError(f"train_dataset: expected one with a length, got {type(data).__name__}")
        batch = args.train_batch_size * args.world_size
        if sampler is None:
            epochs = math.ceil(args.num_train_epochs)
            if args.max_steps > 0:
                epochs = math.ceil(args.max_steps * args.gradient_accumulation_steps * batch / len(data))
            store = policy if isinstance(policy, ScoreStore) else ScoreStore(len(data), policy, epochs=epochs)
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler = PrioritySampler(store, batch_size=batch, seed=seed, num_replicas=1, rank=0)
        elif policy != "loss":
            raise TypeError("policy, sampler: give one of them; the sampler's store has its policy")
        if len(sampler.store) != len(data):
            raise ValueError(f"the store has {len(sampler.store)} examples, the train data set {len(data)}")
        if sampler.batch_size != batch or (args.world_size > 1 and sampler._replicas != 1):
            raise ValueError(
                f"sampler: expected batch_size={batch}, that of all {args.world_size} processes, and num_replicas=1, "
                "rank=0, as Accelerate deals batches to them; got "
                f"batch_size={sampler.batch_size}, num_replicas={sampler._replicas}"
            )
        plans = type(sampler.store.policy).plan not in (Policy.plan, Uniform.plan)
        if plans and args.gradient_accumulation_steps > 1:
            raise ValueError(
                f"gradient_accumulation_steps = {args.gradient_accumulation_steps}: expected 1, because policy "
                f"{sampler.store.policy.name!r} may end epochs before the Trainer expects it, and the last gradients "
                "would be left to the next one"
            )
        self.sampler = sampler
        self._resumed: tuple[int, str] | None = None  # batches trained of the epoch that goes on, and the checkpoint
        self._rest = (0, 0, 0)  # the epoch; batches of it before this run, and in this run
        self.callback_handler.callbacks.insert(0, _WholeEpoch(self))

    def _check_arguments(self) -> None:
        args, strange = self.args, "the losses could not be told apart by example"
        ways = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        for name, value, usual, why in (
            ("auto_find_batch_size", args.auto_find_batch_size, False, "the sampler's batches are of one size"),
            ("train_sampling_strategy", args.train_sampling_strategy, "random", "PriorityTrainer has its own sampler"),
            ("split_batches", args.accelerator_config.split_batches, False, "batches would be cut another way"),
            ("dispatch_batches", bool(args.accelerator_config.dispatch_batches), False, "each process draws by itself"),
            ("dataloader_in_order", args.dataloader_in_order, True, "losses are matched with batches by their order"),
            ("label_smoothing_factor", args.label_smoothing_factor, 0, "override compute_losses to smooth labels"),
            ("compute_loss_func", self.compute_loss_func, None, "override compute_losses"),
            ("n_gpu", max(args.n_gpu, 1), 1, "start a process for each GPU (torchrun)"),
            ("tensor, context and sequence parallel", ways, 1, strange),
        ):
            if value != usual:
                raise ValueError(f"{name} = {value!r}: expected {usual!r}; {why}")

    def compute_losses(self, model: Any, inputs: dict[str, Any]) -> Losses:
        """One loss for each example of a batch.

        Args:
            model: to be called. inputs: the batch, on the model's device.

        Returns: floating [n], with its graph; or a tuple of it and a dict of what else the policy observes, by name.
        """
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits, labels = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0], inputs.get("labels")
        if labels is None or labels.is_floating_point() or logits is None or logits.shape[:-1] != labels.shape:
            shapes = [None if t is None else f"{t.dtype} {list(t.shape)}" for t in (logits, labels)]
            raise TypeError(
                f"logits {shapes[0]}, labels {shapes[1]}: expected a class for every example or token; override "
                "compute_losses"
            )
        if self._loss_shifts_labels:
            logits, labels = logits[:, :-1], labels[:, 1:]
        each = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none", ignore_index=-100)
        return each.view(len(labels), -1).sum(1) / self._counts(labels).clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss; in training each example's part times its importance weight, and its loss is recorded."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        counts = None
        if num_items_in_batch is not None:
            labels = inputs["labels"]
            counts = self._counts(labels[:, 1:] if self._loss_shifts_labels else labels)
        computed = self.compute_losses(model, inputs)
        losses, others = computed if isinstance(computed, tuple) else (computed, {})
        if counts is None:  # the Trainer will divide by the number of batches that are accumulated
            return self.sampler.step(losses, **others)
        shares = self.sampler.weights.to(losses.device, non_blocking=True) * counts / num_items_in_batch
        self.sampler.record(losses, **others)
        if self.args.average_tokens_across_devices:  # they are counted over processes, whose gradients will be averaged
            shares = shares * self.accelerator.num_processes
        return torch.where(torch.isfinite(losses.detach()), losses * shares, 0).sum()

    @staticmethod
    def _counts(labels: torch.Tensor) -> torch.Tensor:
        """[n]: how many labels an example has, as the Trainer counts them."""
        return labels.ne(-100).reshape(len(labels), -1).sum(1)

    def _get_train_sampler(self, train_dataset: Any = None) -> PrioritySampler:
        args, sampler = self.args, self.sampler
        read = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        # One that Accelerate holds, and all that are accumulated, which the Trainer asks for together.
        sampler.lookahead = read + args.gradient_accumulation_steps
        sampler._check_scheme()
        return sampler

    # Saving, and going on.

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **named: Any) -> Any:
        """The Trainer's. ValueError for a checkpoint without ``ignore_data_skip=True``."""
        if resume_from_checkpoint and not self.args.ignore_data_skip:
            raise ValueError(
                "ignore_data_skip = False: expected True to resume; the sampler goes on by itself, and the Trainer "
                "would skip batches that were not trained on"
            )
        found = super().train(resume_from_checkpoint, *arguments, **named)
        if self.sampler.lag is None:  # what other processes or the accelerator sent last, and no draw has asked for
            self.sampler.flush()
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the Trainer's own files, so that a checkpoint that is whole for the Trainer has it.
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        path = os.path.join(self._get_output_dir(trial=trial), folder, FILE)
        if self.args.should_save:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.save(Checkpoint(self.sampler).state_dict(), path)
        super()._save_checkpoint(model, trial)

    def _init_training_state(
        self,
        max_steps: Any,
        num_update_steps_per_epoch: Any,
        num_train_epochs: Any,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, skipped = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._resumed = None
        if resume_from_checkpoint is not None:
            path = os.path.join(resume_from_checkpoint, FILE)
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path}: expected a checkpoint of a PriorityTrainer")
            state = torch.load(path, weights_only=True)
            Checkpoint(self.sampler).load_state_dict(state)
            position = state["sampler"]
            epochs = position["epoch"] + position["over"]  # counted, where the Trainer reckons from steps
            if not position["over"] and position["position"]:
                assert self.sampler.batch_size is not None
                self._resumed = position["position"] // self.sampler.batch_size, resume_from_checkpoint
        return epochs, skipped

    def _run_epoch(self, **named: Any) -> None:
        done = self._resumed[0] if self._resumed is not None else 0
        # The Trainer takes the last gradients of an epoch by the number of its batches, of which only the rest come.
        named["steps_in_epoch"] -= done
        self._rest = named["epoch"], done, named["steps_in_epoch"]
        super()._run_epoch(**named)

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """The Trainer's. In an epoch that goes on, making the loader has moved the random numbers: they go back."""
        found = super().get_batch_samples(*arguments, **named)
        if self._resumed is not None:
            self._load_rng_state(self._resumed[1])
            self._resumed = None
        return found

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """The Trainer's, with the sampler's ``stats()`` beside a training loss."""
        if "loss" in logs and self.is_world_process_zero():
            logs.update({f"fastprio/{name}": value for name, value in self.sampler.stats().items()})
        super().log(logs, *arguments, **named)


class _WholeEpoch(TrainerCallback):
    """Says how much of an epoch is over that goes on, where the Trainer knows only its rest."""

    def __init__(self, trainer: PriorityTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        epoch, done, rest = self._trainer._rest
        if done:
            state.epoch = epoch + (done + round((state.epoch - epoch) * rest)) / (done + rest)
