"""How much of a batch is padding when every row of a table is padded to the same length, as the notebook did.

    python tests/benchmarks/notebook_padding.py                               # WikiText-2's test split, from the Hub
    python tests/benchmarks/notebook_padding.py --files "texts/*.txt"         # your own; a line is a row

Needs the Hub for the defaults; HF_ENDPOINT and the Hub's cache work as ever.
"""

import argparse

from datasets import load_dataset
from transformers import AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="Salesforce/wikitext")
    parser.add_argument("--name", default="wikitext-2-raw-v1")
    parser.add_argument("--split", default="test")
    parser.add_argument("--column", default="text")
    parser.add_argument("--files", help="text files in place of --path, --name and --split")
    parser.add_argument("--tokenizer", default="openai-community/gpt2")
    parser.add_argument("--max-length", type=int, default=1024)
    asked = parser.parse_args()

    if asked.files:
        rows = load_dataset("text", data_files=asked.files, split="train")["text"]
    else:
        rows = load_dataset(asked.path, asked.name, split=asked.split)[asked.column]
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(asked.tokenizer)(list(rows))["input_ids"]]
    kept = sum(min(length, asked.max_length) for length in lengths)
    computed = len(lengths) * asked.max_length
    print(f"{len(lengths):,} rows of {sum(lengths):,} tokens, {sum(lengths) / len(lengths):.0f} a row")
    print(f"each padded or cut to {asked.max_length:,}: {1 - kept / computed:.1%} of what is computed is padding")
    print(
        f"{sum(length == 0 for length in lengths):,} rows hold no token at all; {sum(lengths) - kept:,} tokens are cut"
    )


if __name__ == "__main__":
    main()
