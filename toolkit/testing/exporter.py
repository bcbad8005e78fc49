"""The checks of an exporter plugin."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from toolkit.api import ExportBytes, Exporter, Results, RunContext
from toolkit.testing.bench import Bench, first_accepted, require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SET_BY_SAVING = ("architectures", "dtype", "transformers_version", "_name_or_path")
"""Config entries that `save_pretrained` itself sets."""
RESULTS = Results(
    recipe="recipe: 1\ndataset: {plugin: python-docs}\n",
    data={"train": {"documents": 200, "tokens": 4800, "blocks": 100}},
    metrics={"steps": 2.0, "tokens_seen": 384.0, "eval_loss": 5.5, "perplexity": 244.7},
)


def folder(plugin: Exporter, bench: Bench) -> str:
    """It names a plain folder in the run directory, or none."""
    if plugin.folder is None:
        return "it writes no folder, and gets the newest exported one"
    name = plugin.folder
    plain = Path(name).name == name and name not in ("", ".", "..", "checkpoints")
    require(plain, f"its folder is {name!r}; it has to be a plain name, and not checkpoints")
    return f"it fills the folder {name}"


def export(plugin: Exporter, bench: Bench) -> str:
    """It writes to its folder, touches nothing else, and leaves the model unchanged for the exporters after it."""
    family, told = first_accepted(("gpt2", "lora"), lambda name: _exported(plugin, bench, name))
    # It runs once before the first step and again after the last.
    again = _exported(plugin, bench, family)
    require(again == told, f"a second export writes other files: {again} after {told}")
    return told if family == "gpt2" else f"{told}, of a model with LoRA"


def _exported(plugin: Exporter, bench: Bench, family: str) -> str:
    import torch

    model, tokenizer = _model(bench, family), copy.deepcopy(bench.tokenizer)
    before, settings = _weights(model), _settings(model, tokenizer)
    run = bench.run(rehearsal=True)
    target = _target(plugin, bench, run)
    (run.folder / "run.json").write_text("{}", encoding="utf-8")
    outside, inside = _files(run.folder, but=target), _files(target)
    with connections_watched() as connections:
        plugin.check(model, run)
        plugin.export(model, tokenizer, target, RESULTS, run)
    require(not connections, f"in a rehearsal it connects to {', '.join(connections[:2])}; look at run.rehearsal")
    touched = sorted(outside.items() ^ _files(run.folder, but=target).items())
    require(not touched, f"it writes outside its folder: {', '.join(sorted({name for name, _ in touched}))}")
    after = _weights(model)
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    require(same, "the model is another one after export; change a copy")
    require(
        _settings(model, tokenizer) == settings,
        "the model's settings or the tokenizer are others after export; change a copy",
    )
    if plugin.folder is None:
        require(_files(target) == inside, "it writes no folder, and changes the one that it is given to read")
        return "nothing is touched, and a rehearsal sends nothing away"
    written = _files(target)
    require(written, "it writes nothing into its folder")
    return f"{len(written)} files: {', '.join(sorted(written)[:6])}"


def memory(plugin: Exporter, bench: Bench) -> str:
    """For a plan, it says how many bytes it takes."""
    if not isinstance(plugin, ExportBytes):
        return "a plan counts what it takes to load the saved weights"
    size = plugin.export_bytes(weights=1 << 30, saved=1 << 20)
    require(isinstance(size, int) and size >= 0, f"export_bytes returns {size!r}, which is not a number of bytes")
    return f"a plan counts {size:,} bytes where the weights have {1 << 30:,} and a checkpoint {1 << 20:,}"


def _model(bench: Bench, family: str) -> PreTrainedModel:
    if family == "gpt2":
        return bench.model("gpt2")
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(
        bench.model("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model: PreTrainedModel = adapted
    return model


def _target(plugin: Exporter, bench: Bench, run: RunContext) -> Path:
    """The empty folder to fill, under the name that it has until it is complete; or an exported folder to read."""
    if plugin.folder is not None:
        target = run.folder / f".{plugin.folder}.partial"
        target.mkdir()
        return target
    target = run.folder / "model"
    bench.model("gpt2").save_pretrained(target)
    bench.tokenizer.save_pretrained(target)
    return target


def _files(root: Path, *, but: Path | None = None) -> dict[str, str]:
    """The digest of each file under a folder, by relative path."""
    files = (file for file in root.rglob("*") if file.is_file() and not (but and file.is_relative_to(but)))
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Everything besides the weights that the next exporter would find changed."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    generation = getattr(model, "generation_config", None)
    config = {name: value for name, value in model.config.to_dict().items() if name not in SET_BY_SAVING}
    return [config, generation and generation.to_dict(), trained, special, tokenizer.get_vocab()]


@contextlib.contextmanager
def connections_watched() -> Iterator[list[str]]:
    """Refuse all connections, and record where Python code tried to connect."""
    seen: list[str] = []

    def refused(address: Any) -> None:
        seen.append(str(address[0] if isinstance(address, tuple) else address))
        raise ConnectionRefusedError("plugin check lets nothing out in a rehearsal")

    # An audit hook would see more, but cannot be removed again.
    with (
        patch.object(socket.socket, "connect", lambda self, address: refused(address)),
        patch.object(socket, "getaddrinfo", lambda host, *more, **named: refused(host)),
    ):
        yield seen


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


CHECKS = (("folder", folder), ("export", export), ("memory", memory))
