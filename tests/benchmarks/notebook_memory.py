"""Peak memory of one optimizer step of GPT-2 (124M) on the processor, with the Trainer, as the notebook took it.

    python tests/benchmarks/notebook_memory.py                                # batch 4 x 1024, float32
    python tests/benchmarks/notebook_memory.py --batch-size 2
    python tests/benchmarks/notebook_memory.py --batch-size 2 --gradient-checkpointing

The weights and the tokens are random: neither changes what memory is needed. Linux: the peak is the kernel's own.
"""

import argparse
import resource
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class RandomTokens(torch.utils.data.Dataset):
    """Rows of tokens, all different, with labels."""

    def __init__(self, rows: int, length: int) -> None:
        self.tokens = torch.randint(50257, (rows, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    asked = parser.parse_args()

    model = GPT2LMHeadModel(GPT2Config())
    if asked.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=asked.batch_size,
            max_steps=asked.steps,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = RandomTokens(asked.batch_size * asked.steps, asked.length)
        Trainer(model=model, args=arguments, train_dataset=data).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    how = ", gradient checkpointing" if asked.gradient_checkpointing else ""
    print(f"batch {asked.batch_size} x {asked.length}{how}: peak resident memory {peak / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
