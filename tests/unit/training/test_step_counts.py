"""Tokens and FLOPs are counted as the Trainer counts them."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from toolkit.training.step_counts import CountingTrainer


def test_they_are_those_of_the_trainer(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, include_num_input_tokens_seen="all", report_to="none")
    theirs, ours = (of(model=model, args=arguments) for of in (Trainer, CountingTrainer))
    for shape in ((3, 16), (1, 5)):
        batch = {"input_ids": torch.zeros(shape, dtype=torch.int64)}
        assert ours.floating_point_ops(batch) == theirs.floating_point_ops(batch)
        for trainer in (theirs, ours):
            trainer._track_num_input_tokens(batch)
    assert ours.state.num_input_tokens_seen == theirs.state.num_input_tokens_seen == 53
