"""Tokenizers and models of any size with nothing learned in them, for benchmarks; and how these start the toolkit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

NOTED = "peak-of-rank-"
COMMAND = f"""
import os, pathlib
from toolkit.system.host_memory import peak_resident_bytes
def peak():
    import torch
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_resident_bytes()
from toolkit.cli.main import main
try:
    main()
finally:
    pathlib.Path({NOTED!r} + os.environ.get("RANK", "0")).write_text(str(peak()))
"""
"""The toolkit, which notes at its end what it held at most: its tensors on a GPU, else VmHWM. Not what wait4 says of it
(ru_maxrss): there the kernel counts the memory that this process had when it began that one, too."""
AS_WHERE_MEMORY_IS_SHORT = f"from toolkit.memory.allocator import give_memory_back; give_memory_back()\n{COMMAND}"
"""A run does this by itself where its plan comes near its limit; here there is more than that."""


def device_and_versions() -> str:
    """What a figure depends on, in a line."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; {time.strftime('%Y-%m-%d')}"


def show(lines: Iterable[str], output: Path | None) -> None:
    """Print lines as they come, and append each to a file."""
    for line in lines:
        print(line, flush=True)
        if output:
            with output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def peak_of(
    start: str, words: Sequence[str], folder: Path, environment: Mapping[str, str], *, processes: int = 1
) -> int:
    """Run the toolkit in a process of its own, or in several, in this folder, and return the most bytes that one held.

    Raises:
        SystemExit: it failed; with what it said.
    """
    together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    launcher = [sys.executable, *together] if processes > 1 else []
    with (folder / "log.txt").open("w+") as log:
        done = subprocess.run(
            [*launcher, sys.executable, "-c", start, *words],
            stdout=log, stderr=log, cwd=folder, env={**os.environ, **environment}, check=False,
        )  # fmt: skip
        if done.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(words)}: {log.read()[-4000:]}")
    return max(int(file.read_text(encoding="utf-8")) for file in folder.glob(f"{NOTED}*"))


def tokenizer_folder(folder: Path, vocabulary: int) -> Path:
    """Write a tokenizer that reads bytes, and has as many more tokens as asked for, which no text uses."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = {"eos_token": "<end>", "pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}
    special |= {"mask_token": "<mask>", "unk_token": "<unk>"}
    known = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = [*known, *(f"token {number}" for number in range(len(known), vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={token: row for row, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    wrap(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def bert_folder(folder: Path, layers: int, width: int, vocabulary: int, *, positions: int) -> Path:
    """Write a BERT with random weights."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        pad_token_id=1,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
