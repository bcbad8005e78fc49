"""The training settings of a recipe, as a strategy reads and sets them.

Names are those of `transformers.TrainingArguments` wherever it has one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from toolkit.api.context import Precision
from toolkit.formatting import parsed_count


def _tokens(given: Any) -> Any:
    """A count as people write it, 2B or 1.5e9, as a whole number."""
    if not isinstance(given, (str, float)):
        return given
    if (count := parsed_count(given)) is None:
        raise ValueError(f"write a number of tokens, with K, M, B or T: 800K, 500M, 2B, 1.5e9; this is {given!r}")
    return round(count)


TokenCount = Annotated[int, BeforeValidator(_tokens, json_schema_input_type=int | str)]
"""A number of tokens, which a recipe may write with K, M, B or T: 500M."""


def _steps_or_share(given: float) -> float:
    if given >= 1 and not given.is_integer():
        raise ValueError(f"write a whole number of steps, or a share of all steps below 1; this is {given:g}")
    return given


StepsOrShare = Annotated[float, AfterValidator(_steps_or_share)]
"""A number of steps or, below 1, a share of all steps."""


def _compile_choice(given: Any) -> Any:
    if given is not True and given is not False and given != "auto":
        raise ValueError(f"write true, false or auto; this is {given!r}")
    return given


CompileChoice = Annotated[
    bool | Literal["auto"], BeforeValidator(_compile_choice, json_schema_input_type=bool | Literal["auto"])
]
"""Whether steps are compiled; pydantic by itself would name each of the two types that a wrong value is not."""


class Settings(BaseModel):
    """How long, how fast, how often; immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training tokens; `max_steps` and `max_tokens` take precedence."""
    max_steps: int | None = Field(default=None, ge=1)
    """Total optimizer steps; if not given, `max_tokens` decides, or else `num_train_epochs`."""
    max_tokens: TokenCount | None = Field(default=None, ge=1)
    """Total tokens to train on, repetitions included: 500M, 2B. Rounded up to whole steps; `max_steps` takes
    precedence."""
    global_batch_size: int = Field(default=8, ge=1)
    """Sequences per optimizer step, over all devices. No memory strategy changes it."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences per forward pass on one device; gradient accumulation makes up the rest of the global batch. Default:
    each device's whole share of the global batch."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
        "warmup_stable_decay",
        "cosine_with_min_lr",
    ] = "linear"
    """The learning-rate schedule after the warmup."""
    lr_scheduler_kwargs: dict[str, float | int | str] = Field(default_factory=dict)
    """Further arguments of that schedule: `num_decay_steps` of warmup_stable_decay, say."""
    warmup_steps: StepsOrShare = Field(default=0, ge=0)
    """Steps of linear learning-rate warmup; a number below 1 is a share of all steps."""
    warmup_block_size: int | None = Field(default=None, ge=2)
    """Short sequences first: in the first steps, cut each block into pieces of this many tokens, each a sequence of its
    own. The tokens of a step stay the same."""
    warmup_block_steps: StepsOrShare = Field(default=0.3, gt=0)
    """Steps on such pieces; a number below 1 is a share of all steps."""
    ema_width: float | None = Field(default=None, gt=0, le=0.25)
    """Average the weights as they are trained (EMA), and evaluate, save and export the averages: about so large a share
    of all steps so far is averaged, 0.1 for a tenth. With a constant learning rate it replaces the decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the matrices; biases and norms are not decayed."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 turns clipping off."""
    seed: int = Field(default=42, ge=0)
    """Seed of the weights, of dropout and of the data order."""
    precision: Precision = "fp32"
    """Number format of the matrix multiplications; the weights and the optimizer state stay in float32."""
    deterministic: bool = False
    """Use only kernels whose results never vary from run to run, so that a resume on a GPU is exact to the bit
    (`torch.use_deterministic_algorithms`); some are slower. On a CPU all of them are."""
    gradient_checkpointing: bool = False
    """Keep only the activations between layers and recompute those inside: less memory, same numbers."""
    gradient_checkpointing_every: int = Field(default=1, ge=1)
    """Recompute the activations of every n-th layer only, starting with the first; 1 is all of them."""
    optim: str | None = None
    """An optimizer by its name in transformers (adafactor, adamw_8bit, ...), in place of the recipe's `optimizer`."""
    optim_args: str | None = None
    """Further arguments of that optimizer, in transformers' format: rank=64, say."""
    release_gradients: bool = False
    """Update each parameter inside the backward pass (optimizer step in backward) and free its gradient at once; only
    on one device, without gradient accumulation and without clipping."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over the processes of the run (FSDP2)."""
    shard_within_host: bool = False
    """Shard over the processes of one host, and replicate over the hosts (HSDP)."""
    shard_reshard_after_forward: bool = True
    """Free a layer's gathered weights between its forward and its backward pass (ZeRO-3)."""
    shard_cpu_offload: bool = False
    """Keep the shards in host memory, and take the optimizer's steps there."""
    torch_compile: CompileChoice = "auto"
    """Compile the model's layers and the loss with torch.compile: faster steps, after half a minute of compiling.
    `auto`: in a run of ten minutes or more on a CPU, or five on a GPU, and if compiled steps prove to be faster. On a
    CPU it needs a C++ compiler."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate every N steps; if not given, three to ten times in the run, depending on its length. The end is always
    evaluated."""
    save_steps: int | None = Field(default=None, ge=1)
    """Save a checkpoint every N steps. The end is always saved."""
    save_minutes: float | None = Field(default=5.0, gt=0)
    """Save a checkpoint once this many minutes have passed since the last one."""
    save_total_limit: int = Field(default=2, ge=1)
    """Keep this many checkpoints; older ones are removed once a newer one is safe on disk."""
    keep_every: int | None = Field(default=None, ge=1)
    """Also save every N steps, and keep those checkpoints for good beside the newest: milestones to go back to."""
    save_in_background: bool | None = None
    """Copy the state in memory and write it while training continues (true), or wait for the disk (false); if not
    given, in the background where the copy fits into a quarter of the free memory."""
    on_spike: Literal["stop", "skip-batch", "warn"] = "warn"
    """What to do about a loss spike, a step whose loss is far above the hundred before it (by six standard deviations
    and by a tenth): stop before the step is taken, skip its batch, or only record it."""
    logging_steps: int | None = Field(default=None, ge=1)
    """Log the loss every N steps; if not given, about two hundred times in the run."""
    dataloader_num_workers: int = Field(default=0, ge=0)
    """Worker processes that prepare batches. The data is packed and memory-mapped, so 0 is usually fastest."""
    ddp_timeout: int = Field(default=1800, ge=1)
    """Seconds that the processes of a run wait for one another in training; and for how long they wait for one that
    prepares the data without making any progress."""
    elastic: bool = False
    """Go on with another number of processes, without being asked, when a host or a GPU is lost or comes back: `recipe
    launch` lets torchrun start with fewer hosts, and `recipe run --processes N --max-restarts R` with fewer GPUs. The
    global batch stays as it is, so every such number has to divide it."""
