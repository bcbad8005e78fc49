"""The checks of a callback plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.api import Callback, RunContext
from toolkit.recipe.settings import Training
from toolkit.testing.bench import Bench, require

if TYPE_CHECKING:
    from transformers import TrainerCallback

STEPS = 2


def callbacks(plugin: Callback, bench: Bench) -> str:
    """It returns a list of TrainerCallbacks."""
    made = _made(plugin, bench.run())
    return f"{', '.join(type(one).__name__ for one in made)}" if made else "none, for this task"


def run(plugin: Callback, bench: Bench) -> str:
    """A real Trainer takes two steps with it, logs, evaluates, saves and ends; the weights are those without it."""
    import torch

    context = bench.run()
    others = {name: context.folder / name for name in ("run.json", "metrics.jsonl", "resolved.yaml")}
    for name, file in others.items():
        file.write_text(name, encoding="utf-8")
    trainer = _trained(bench, context, _made(plugin, context))
    taken = trainer.state.global_step
    changed = [name for name, file in others.items() if file.read_text(encoding="utf-8") != name]
    require(not changed, f"it changes {', '.join(changed)}, which are the run's; write files of its own")
    if taken < STEPS:
        return f"a Trainer takes {taken} step{'s' * (taken != 1)} with it, where it ends the training"
    alone = _trained(bench, bench.run(), [])
    pairs = zip(trainer.model.named_parameters(), alone.model.parameters(), strict=True)
    moved = [name for (name, one), other in pairs if not torch.equal(one, other)]
    require(
        not moved,
        f"with it the training ends with other weights ({moved[:1]}); a run that is resumed without it would be "
        f"another: a callback watches, and what trains otherwise is a memory strategy, an objective or an optimizer",
    )
    arguments, plain = trainer.args.to_dict(), alone.args.to_dict()
    changed = sorted(name for name in plain.keys() - {"output_dir", "logging_dir"} if plain[name] != arguments[name])
    require(not changed, f"it changes the Trainer's {', '.join(changed)}, which are the recipe's to say")
    return f"a Trainer takes {taken} steps with it, and trains the same"


def _trained(bench: Bench, context: RunContext, callbacks: list[TrainerCallback]) -> Any:
    """A Trainer that has finished its steps."""
    from transformers import PrinterCallback, Trainer
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy

    from toolkit.training.arguments import training_arguments
    from toolkit.training.loss import token_mean_loss
    from toolkit.training.without_effect import check_loss_function, loss_function_of

    arguments = training_arguments(
        Training(max_steps=STEPS),
        output=context.folder / "checkpoints",
        micro_batch_size=4,
        accumulation=1,
        device_kind="cpu",
    )
    arguments.eval_steps = arguments.logging_steps = 1
    arguments.save_steps = STEPS
    arguments.logging_strategy, arguments.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
    rows: Any = [{"input_ids": row, "labels": row.clone()} for row in bench.batch(8)]
    model = bench.model("gpt2")
    loss_function = loss_function_of(model)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:4],
        processing_class=bench.tokenizer,
        compute_loss_func=token_mean_loss("causal-lm"),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    check_loss_function(loss_function, model, "it")
    return trainer


def _made(plugin: Callback, context: RunContext) -> list[TrainerCallback]:
    from transformers import TrainerCallback

    made = plugin.callbacks(context)
    require(isinstance(made, list), f"callbacks returns a {type(made).__name__} and not a list")
    wrong = [one for one in made if not isinstance(one, TrainerCallback)]
    require(not wrong, f"callbacks returns {wrong[:1]!r}, which is not a TrainerCallback")
    return made


CHECKS = (("callbacks", callbacks), ("run", run))
