"""The repositories that the tests' Hub has: small, made up, the same in every run, and of the real ones' shape.

Weights are written with numpy and tokenizers are trained with the library tokenizers, so that making them imports
neither torch nor transformers.
"""

import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence

from tests.hub_server import HubServer

ARTICLES = {"train": 100, "validation": 10, "test": 10}
MEMBER = "hf_member"
"""The token that opens the gated repositories."""
STRANGER = "hf_stranger"
"""A valid token whose owner has accepted no terms."""

POSITIONS = 256
WIDTH = 32
LAYERS = 2
HEADS = 2

SUBJECTS = [
    "river",
    "bridge",
    "harbour",
    "castle",
    "railway",
    "comet",
    "beetle",
    "opera",
    "storm",
    "painter",
    "glacier",
    "orchard",
]
VERBS = [
    "crosses",
    "follows",
    "describes",
    "carries",
    "outlived",
    "resembles",
    "replaced",
    "surrounds",
]
ADJECTIVES = [
    "old",
    "narrow",
    "famous",
    "quiet",
    "northern",
    "wooden",
    "bright",
    "distant",
    "early",
    "broken",
]
TAILS = [
    "in the spring of {year}",
    "for more than {number} years",
    "with {number} @,@ 500 visitors",
    "near the town of {place}",
    "according to the critics of {place}",
]
PLACES = ["Ellermouth", "Tarn", "Quillby", "Osterfeld", "Havenbrook", "Lindmoor"]


def fill(hub: HubServer) -> None:
    """Publish everything that tests may count on."""
    hub.tokens |= {MEMBER, STRANGER}
    articles = {split: list(_articles(split, count)) for split, count in ARTICLES.items()}
    texts = ["".join(lines) for lines in articles["train"]]
    hub.publish("dataset", "Salesforce/wikitext", wikitext(articles))
    hub.publish("dataset", "HuggingFaceFW/fineweb-edu", fineweb(texts))
    hub.publish("dataset", "example/gated", {**table({"train": {"text": texts[:5]}})}, members=frozenset({MEMBER}))
    gpt2 = gpt2_repository(texts)
    hub.publish("model", "openai-community/gpt2", gpt2)
    hub.publish("model", "example/gated", gpt2, members=frozenset({MEMBER}))
    hub.publish("model", "google-bert/bert-base-uncased", bert_repository(texts))


def _articles(split: str, count: int) -> Iterator[list[str]]:
    """Articles as WikiText has them: a row is a line, and an empty row stands round each heading."""
    draw = random.Random(split)
    for number in range(count):
        lines = ["", f" = {draw.choice(ADJECTIVES).title()} {draw.choice(SUBJECTS)} {number} ( {split} ) = \n", ""]
        lines += [_paragraph(draw), _paragraph(draw)]
        lines += ["", f" = = {draw.choice(PLACES)} = = \n", "", _paragraph(draw)]
        lines += ["", " = = = Notes = = = \n", "", _paragraph(draw)]
        yield lines


def _paragraph(draw: random.Random) -> str:
    return f" {' '.join(_sentence(draw) for _ in range(draw.randint(3, 6)))} \n"


def _sentence(draw: random.Random) -> str:
    tail = draw.choice(TAILS).format(
        year=draw.randint(1700, 1999), number=draw.randint(2, 90), place=draw.choice(PLACES)
    )
    first = f"The {draw.choice(ADJECTIVES)} {draw.choice(SUBJECTS)} {draw.choice(VERBS)}"
    return f"{first} a {draw.choice(ADJECTIVES)} {draw.choice(SUBJECTS)} {tail} ."


def parquet(columns: dict[str, Sequence[object]], *, rows_per_group: int = 1000) -> bytes:
    """The columns as a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=rows_per_group, compression="none", use_dictionary=False)
    return sink.getvalue()


def table(splits: dict[str, dict[str, Sequence[object]]]) -> dict[str, bytes | str]:
    """A dataset's repository of one configuration: one Parquet file a split."""
    files = {f"data/{split}-00000-of-00001.parquet": parquet(columns) for split, columns in splits.items()}
    return {"README.md": card({"default": {split: f"data/{split}-*" for split in splits}}), **files}


def card(configurations: dict[str, dict[str, str]], *, default: str | None = None) -> str:
    """A dataset's README.md, whose head says which files are which split of which configuration."""
    configs = [
        {
            "config_name": name,
            **({"default": True} if name == default else {}),
            "data_files": [{"split": split, "path": pattern} for split, pattern in splits.items()],
        }
        for name, splits in configurations.items()
    ]
    return f"---\n{json.dumps({'configs': configs})}\n---\n# A dataset\n"  # JSON is YAML


def wikitext(articles: dict[str, list[list[str]]]) -> dict[str, bytes | str]:
    """Two configurations with the same lines, since nothing here depends on words that were replaced."""
    versions = ("wikitext-2-raw-v1", "wikitext-2-v1")
    files: dict[str, bytes | str] = {
        "README.md": card({version: {split: f"{version}/{split}-*" for split in articles} for version in versions})
    }
    for split, lines_of in articles.items():
        rows = parquet({"text": [line for lines in lines_of for line in [*lines, ""]]})
        files |= {f"{version}/{split}-00000-of-00001.parquet": rows for version in versions}
    return files


def fineweb(texts: Sequence[str]) -> dict[str, bytes | str]:
    """Web pages with the columns of FineWeb-Edu, in two files of many row groups: enough to read the first alone."""
    files: dict[str, bytes | str] = {
        "README.md": card(
            {"default": {"train": "data/*"}, "sample-10BT": {"train": "sample/10BT/*"}}, default="default"
        )
    }
    for shard in range(2):
        pages = [f"{texts[row % len(texts)]}Page {shard}-{row}." for row in range(200)]
        columns: dict[str, Sequence[object]] = {
            "text": pages,
            "id": [f"<urn:uuid:{shard}-{row}>" for row in range(200)],
            "url": [f"https://example.org/{shard}/{row}" for row in range(200)],
            "score": [3.0 + row / 200 for row in range(200)],
            "token_count": [len(page.split()) for page in pages],
        }
        files[f"sample/10BT/{shard:03d}_00000.parquet"] = parquet(columns, rows_per_group=20)
    files["data/000_00000.parquet"] = files["sample/10BT/000_00000.parquet"]
    return files


def gpt2_repository(texts: Iterable[str]) -> dict[str, bytes | str]:
    """GPT-2 of two layers with random weights, its byte-level BPE, and no pad token, as published."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab_size()
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": POSITIONS,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "vocab_size": vocabulary,
        "bos_token_id": tokenizer.token_to_id(end),
        "eos_token_id": tokenizer.token_to_id(end),
    }
    about = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": POSITIONS,
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocabulary, WIDTH),
        "wpe.weight": (POSITIONS, WIDTH),
        **norm("ln_f"),
    }
    for layer in (f"h.{index}" for index in range(LAYERS)):
        shapes |= norm(f"{layer}.ln_1") | norm(f"{layer}.ln_2")
        for part, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes |= {f"{layer}.{part}.weight": (inputs, outputs), f"{layer}.{part}.bias": (outputs,)}
    return {
        "config.json": json.dumps(config),
        "generation_config.json": json.dumps({"bos_token_id": 0, "eos_token_id": 0}),
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(about),
        "model.safetensors": weights(shapes),
    }


def bert_repository(texts: Iterable[str]) -> dict[str, bytes | str]:
    """BERT of two layers with random weights, and word pieces in small letters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=512, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    vocabulary = tokenizer.get_vocab_size()
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
        "pad_token_id": 0,
    }
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS, **names}
    embeddings = "bert.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.word_embeddings.weight": (vocabulary, WIDTH),
        f"{embeddings}.position_embeddings.weight": (POSITIONS, WIDTH),
        f"{embeddings}.token_type_embeddings.weight": (2, WIDTH),
        **norm(f"{embeddings}.LayerNorm"),
        **dense("cls.predictions.transform.dense", WIDTH, WIDTH),
        **norm("cls.predictions.transform.LayerNorm"),
        "cls.predictions.bias": (vocabulary,),
    }
    for layer in (f"bert.encoder.layer.{index}" for index in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= dense(f"{layer}.attention.{part}", WIDTH, WIDTH)
        shapes |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
        shapes |= dense(f"{layer}.intermediate.dense", WIDTH, 4 * WIDTH) | dense(
            f"{layer}.output.dense", 4 * WIDTH, WIDTH
        )
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {
        "config.json": json.dumps(config),
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(about),
        "vocab.txt": "".join(f"{token}\n" for token, _ in ids),
        "model.safetensors": weights(shapes),
    }


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def weights(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Random weights, as a model has them before training, in the safetensors format."""
    import numpy as np
    from safetensors.numpy import save

    draw = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32)
        if ("ln_" in name or "Norm" in name) and name.endswith("weight")
        else np.zeros(shape, np.float32)
        if name.endswith("bias")
        else draw.normal(0, 0.02, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return save(tensors, metadata={"format": "pt"})
