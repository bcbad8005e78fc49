"""Sample texts from the model during training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from toolkit.api import Callback, RunContext, ToolkitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

FILE = "samples.jsonl"
SHOWN_CHARACTERS = 160
"""Characters of a sample that are shown; the file has all of it."""


class Samples(Callback):
    """Generate a sample text now and then: shown as the model trains, and kept in samples.jsonl.

    The same step gives the same text: sampling is seeded with the run's seed and the step.
    """

    every_steps: int | None = Field(default=None, ge=1)
    """Generate a text every N optimizer steps; if not given, ten times in the run."""
    prompt: str | None = None
    """The beginning of the text; if not given, it starts like a new document."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens to generate; fewer where the model ends the document or runs out of positions."""
    temperature: float = Field(default=0.8, ge=0)
    """Sampling temperature: 1 samples from the model's distribution, 0 always takes the likeliest token."""

    def callbacks(self, run: RunContext) -> list[TrainerCallback]:
        """One callback; none for masked-lm, whose models do not generate text."""
        if run.task != "causal-lm":
            run.log.info("samples: a %s model fills in words and writes no text, so it has no samples", run.task)
            return []
        return [_sampler(self, run)]

    def sample(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> str:
        """Return the text after the prompt. The global random state and the model's mode are left unchanged."""
        import torch

        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = [start] if not self.prompt else tokenizer.encode(self.prompt, add_special_tokens=False)
        if not ids or ids == [None]:
            raise ToolkitError(
                "samples: the tokenizer has neither bos_token nor eos_token to start from; give a prompt"
            )
        room = (getattr(model.config, "max_position_embeddings", None) or 2**31) - len(ids)
        if room < 1:
            raise ToolkitError(f"samples: the prompt's {len(ids)} tokens fill all of the model's positions; shorten it")
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        drawing = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        input_ids = torch.tensor([ids], device=model.device)
        training = model.training
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            model.train(False)
            try:
                written = model.generate(  # type: ignore[operator] # generation is mixed in by the model's class
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    max_new_tokens=min(self.max_new_tokens, room),
                    pad_token_id=end if pad is None else pad,
                    suppress_tokens=None if pad in (None, end) else [pad],  # never trained, so it may be sampled
                    use_cache=True,
                    **drawing,
                )
            finally:
                model.train(training)
        text = str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))
        if devices:
            torch.cuda.empty_cache()
        return text

    def rehearse(self) -> Samples:
        """The same with a few tokens."""
        return self.model_copy(update={"max_new_tokens": min(self.max_new_tokens, 8)})


def _sampler(options: Samples, run: RunContext) -> TrainerCallback:
    from torch.distributed.fsdp import FSDPModule
    from transformers import TrainerCallback

    class Sampler(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            every = options.every_steps or max(1, state.max_steps // 10)
            if state.global_step % every:
                return
            # A sharded model writes in all processes at once: each holds a part of the weights.
            if not (state.is_world_process_zero or isinstance(kwargs["model"], FSDPModule)):
                return
            text = options.sample(kwargs["model"], kwargs["processing_class"], seed=run.seed + state.global_step)
            if not state.is_world_process_zero:
                return
            line = json.dumps({"step": state.global_step, "prompt": options.prompt, "text": text}) + "\n"
            try:
                with (run.folder / FILE).open("a", encoding="ascii") as file:
                    file.write(line)
            except OSError as error:  # a full disk is no reason to end a run
                run.log.info("step %s: its text is not in %s: %s", state.global_step, FILE, error.strerror)
            whole = " ".join(f"{options.prompt or ''}{text}".split())
            run.log.info(
                "step %s wrote: %s",
                state.global_step,
                whole[:SHOWN_CHARACTERS] + ("…" if len(whole) > SHOWN_CHARACTERS else ""),
            )

    return Sampler()
