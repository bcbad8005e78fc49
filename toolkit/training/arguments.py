"""A recipe's training settings as TrainingArguments of the Hugging Face Trainer."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from toolkit.recipe.settings import Training


def training_arguments(
    training: Training,
    *,
    output: Path,
    micro_batch_size: int,
    accumulation: int,
    device_kind: str,
    evaluates: bool = True,
    evaluation_sequences: int | None = None,
    total_steps: int | None = None,
    in_order: bool = False,
) -> TrainingArguments:
    """A recipe's settings as TrainingArguments; when to log, evaluate and save is left to `RunCallback`.

    Args:
        training: the recipe's settings.
        output: the Trainer's output folder.
        micro_batch_size: sequences per forward pass on one device.
        accumulation: gradient accumulation steps.
        device_kind: cpu, cuda or mps.
        evaluates: whether anything is held out.
        evaluation_sequences: evaluation batch size on one device; the micro-batch size, if not given.
        total_steps: the run's length; if not given, the settings decide.
        in_order: whether the training blocks are read in their own order, which is otherwise shuffled.
    """
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=evaluation_sequences or micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=training.num_train_epochs,
        max_steps=total_steps or training.max_steps or -1,
        train_sampling_strategy="sequential" if in_order else "random",
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs),
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        data_seed=training.seed,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        use_cpu=device_kind == "cpu",
        dataloader_num_workers=training.dataloader_num_workers,
        # Batches lie in pinned memory; a blocking copy from it would wait for all that the GPU has still to do.
        accelerator_config={"non_blocking": device_kind == "cuda"},
        dataloader_drop_last=False,
        report_to=list(training.report_to) or "none",
        prediction_loss_only=True,
        remove_unused_columns=False,
        include_num_input_tokens_seen="all",
        # With the filter, the Trainer would log a non-finite loss as a finite one and go on.
        logging_nan_inf_filter=False,
        save_strategy="no",
        # EarlyStoppingCallback requires an evaluation strategy; RunCallback decides when.
        eval_strategy="steps" if evaluates else "no",
        eval_steps=10**9,
        logging_strategy="no",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    # In one process with several GPUs, the Trainer would use DataParallel and multiply the batch size by their number.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
