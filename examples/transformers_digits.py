"""HF Trainer: PriorityTrainer in its place, gradient accumulation, and an exact resume from the middle of an epoch.

The model is a small Llama made from a config, the text a digit's pixels, sixteen shades of them. With torchrun the same
file trains on several processes. For a language model nothing changes: a sequence's loss is the mean of its tokens'.
"""

import torch
from sklearn.datasets import load_digits
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

from fastprio.integrations.transformers import PriorityTrainer

x, y = load_digits(return_X_y=True)
data = [{"input_ids": row, "labels": label} for row, label in zip(x[:, ::2].astype(int) + 1, y.tolist(), strict=True)]


def make():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=18, num_labels=10, pad_token_id=0, max_position_embeddings=32, **sizes)
    arguments = TrainingArguments(
        "checkpoints",
        num_train_epochs=4,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        save_steps=80,  # in the middle of the second epoch
        ignore_data_skip=True,  # the sampler goes on by itself
        logging_steps=50,
        report_to=[],
        use_cpu=True,
    )
    return PriorityTrainer(LlamaForSequenceClassification(config), arguments, train_dataset=data, policy="loss")


if __name__ == "__main__":
    trainer, again = make(), make()
    trainer.train()
    again.train(resume_from_checkpoint="checkpoints/checkpoint-80")
    pairs = zip(trainer.model.parameters(), again.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    stats = trainer.sampler.stats()
    print(f"{stats['effective_sample_size']:.0f} of {len(data)} effective examples")
    print(f"resumed at step 80: {'the same' if same else 'another'} model")
