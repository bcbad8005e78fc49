"""Tokenizers: that text comes back as it was, and that what is no tokenizer is not taken for one."""

import dataclasses
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import pre_tokenizers

from tests.hub_contents import MEMBER, gpt2_repository
from tests.hub_server import HubServer
from toolkit.api import OptionError, RunContext, UnavailableError
from toolkit_plugins.objective.causal_lm import CausalLM
from toolkit_plugins.tokenizer.byte_bpe import LONGEST_WORD, ByteBPE
from toolkit_plugins.tokenizer.pretrained import PretrainedTokenizer

CORPUS = [f"The {colour} river crosses the {colour} valley, {number} miles from here." for colour, number in
          itertools.product(("brown", "green", "silver"), range(40))]  # fmt: skip

TEXTS = [
    "The brown river.",
    "  two  spaces, a\ttab,\r\nline ends \n\n",
    " leading and trailing ",
    "don't ! clean . up , this ?",
    "naïve Æsop 数学 नमस्ते שלום 🦊👩‍👩‍👧 e\u0301",
    "\x00\x01\x7f\u200d\ufeff\ufffd",
    "<|endoftext|> in the text",
    "",
]


class TestByteBPE:
    def test_it_learns_what_it_was_asked_for(self, run_context: RunContext) -> None:
        tokenizer = ByteBPE(vocab_size=300).build(iter(CORPUS), run_context)
        assert len(tokenizer) == 300
        assert tokenizer.is_fast
        assert tokenizer.model_max_length == run_context.block_size
        assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
            "<|endoftext|>",
            "<|endoftext|>",
            "<|pad|>",
        )
        assert (tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token) == (None,) * 3
        assert len(tokenizer(CORPUS[0])["input_ids"]) < len(CORPUS[0]) / 2, "it has merged nothing"

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_comes_back_whole(self, run_context: RunContext, text: str) -> None:
        tokenizer = ByteBPE(vocab_size=300).build(iter(CORPUS), run_context)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text

    def test_every_byte_is_known_however_little_was_seen(self, run_context: RunContext) -> None:
        tokenizer = ByteBPE(vocab_size=261).build(["a"], run_context)
        assert len(tokenizer) == 258
        assert all(tokenizer.decode(tokenizer(letter)["input_ids"]) == letter for letter in map(chr, range(32, 0x250)))

    def test_masked_lm_gets_its_frame_and_mask(self, run_context: RunContext) -> None:
        run = dataclasses.replace(run_context, task="masked-lm")
        tokenizer = ByteBPE(vocab_size=300).build(iter(CORPUS), run)
        assert len(tokenizer) == 300
        frame = (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token)
        assert frame == ("<|cls|>", "<|sep|>", "<|mask|>")
        assert tokenizer.pad_token == "<|pad|>"
        assert tokenizer.decode(tokenizer("a river")["input_ids"]) == "<|cls|>a river<|sep|>"
        assert tokenizer(f"a {tokenizer.mask_token}")["input_ids"].count(tokenizer.mask_token_id) == 1
        assert tokenizer.decode(tokenizer("a river", add_special_tokens=False)["input_ids"]) == "a river"

    def test_the_same_documents_give_the_same_tokenizer_in_any_process(self, run_context: RunContext) -> None:
        script = (
            "import json, sys\n"
            "from toolkit_plugins.tokenizer.byte_bpe import ByteBPE\n"
            "learned = ByteBPE(vocab_size=400)._learned(json.load(sys.stdin), ['<|endoftext|>', '<|pad|>'])\n"
            "print(learned.to_str())"
        )
        told = [
            subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
                input=json.dumps(CORPUS),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed, threads in (("1", "1"), ("2", "2"))
        ]
        here = ByteBPE(vocab_size=400).build(iter(CORPUS), run_context).backend_tokenizer.to_str()
        assert told[0] == told[1]
        assert json.loads(told[0])["model"] == json.loads(here)["model"]

    @pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
    def test_it_can_be_saved_and_loaded(self, run_context: RunContext, tmp_path: Path, task: str) -> None:
        from transformers import AutoTokenizer

        tokenizer = ByteBPE(vocab_size=300).build(iter(CORPUS), dataclasses.replace(run_context, task=task))
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert loaded.model_max_length == run_context.block_size
        assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
        ids = tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids) == TEXTS[3]

    def test_the_corpus_is_read_as_a_stream(self, run_context: RunContext) -> None:
        alive = 0

        class Document(str):
            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        most = 0

        def corpus() -> Iterator[str]:
            nonlocal alive, most
            for number in range(5000):
                alive += 1
                most = max(most, alive)
                yield Document(f"document {number} of many")

        ByteBPE(vocab_size=300).build(corpus(), run_context)
        assert most < 5000

    def test_a_small_corpus_is_told_of(self, run_context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="toolkit")
        tokenizer = ByteBPE(vocab_size=5000).build(["ab ab", "ab"], run_context)
        assert caplog.messages == [f"The documents yield {len(tokenizer)} tokens of the 5000 asked for."]

    def test_words_of_any_length_are_learned_from_in_pieces(self, run_context: RunContext) -> None:
        tokenizer = ByteBPE(vocab_size=300, min_frequency=1).build(
            ["ab" * 5000, "c" * 20_000, " " * 20_000, "naïve " * 3], run_context
        )
        assert LONGEST_WORD // 2 < max(map(len, tokenizer.get_vocab())) <= LONGEST_WORD
        assert len(tokenizer("ab" * 5000)["input_ids"]) < 40
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
        assert tokenizer.backend_tokenizer.pre_tokenizer.__getstate__() == plain.__getstate__()

    def test_ordinary_words_are_learned_as_if_there_were_no_limit(
        self, run_context: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        corpus = [*CORPUS, "x" * LONGEST_WORD, " " * LONGEST_WORD, " über"]
        limited = ByteBPE(vocab_size=400).build(corpus, run_context).backend_tokenizer.to_str()
        monkeypatch.setattr("toolkit_plugins.tokenizer.byte_bpe.LONGEST_WORD", 10**9)
        assert ByteBPE(vocab_size=400).build(corpus, run_context).backend_tokenizer.to_str() == limited

    def test_min_frequency_decides_what_is_merged(self, run_context: RunContext) -> None:
        rare = ByteBPE(vocab_size=300, min_frequency=4).build(["ab ab ab", "cd cd cd cd"], run_context)
        assert "cd" in rare.get_vocab()
        assert "ab" not in rare.get_vocab()

    def test_there_has_to_be_text(self, run_context: RunContext) -> None:
        with pytest.raises(OptionError, match="no text to learn a tokenizer from"):
            ByteBPE().build(iter(()), run_context)

    def test_a_vocabulary_smaller_than_the_bytes_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="greater than or equal to 261"):
            ByteBPE(vocab_size=256)

    def test_a_rehearsal_is_small(self) -> None:
        assert ByteBPE().rehearse() == ByteBPE(vocab_size=1000)
        assert ByteBPE(vocab_size=500, min_frequency=3).rehearse() == ByteBPE(vocab_size=500, min_frequency=3)

    def test_nothing_is_printed(self, run_context: RunContext, capfd: pytest.CaptureFixture[str]) -> None:
        ByteBPE(vocab_size=300).build(iter(CORPUS), run_context)
        assert capfd.readouterr() == ("", "")


def refused(
    run: RunContext, error: type[OptionError] | type[UnavailableError] = OptionError, **options: str
) -> tuple[str | None, str]:
    """The option that the tokenizer refuses, and what it says about it."""
    with pytest.raises(error) as caught:
        PretrainedTokenizer(**options).build([], run)
    return caught.value.option, str(caught.value)


class TestPretrained:
    def test_a_tokenizer_without_a_pad_token_stays_as_published(self, hub: HubServer, run_context: RunContext) -> None:
        tokenizer = PretrainedTokenizer(path="openai-community/gpt2").build([], run_context)
        assert tokenizer.is_fast
        assert tokenizer.decode(tokenizer("The old river crosses.")["input_ids"]) == "The old river crosses."
        assert (tokenizer.pad_token, tokenizer.eos_token) == (None, "<|endoftext|>")
        assert len(tokenizer) == 512

    def test_a_cache_that_cannot_be_written_names_its_variable(
        self, hub: HubServer, run_context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "home").write_text("a file")
        for cache in (tmp_path / "home", Path("/proc/nowhere")):
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
            monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(cache))
            _, message = refused(run_context, UnavailableError, path="openai-community/gpt2")
            assert f"gpt2 cannot be written to the cache {cache}" in message
            assert "set HF_HOME to a folder that can be written" in message

    def test_berts_own_pad_token_stays(self, hub: HubServer, run_context: RunContext) -> None:
        tokenizer = PretrainedTokenizer(path="google-bert/bert-base-uncased").build([], run_context)
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("[PAD]", None)
        assert tokenizer.decode(tokenizer("The OLD river")["input_ids"]) == "[CLS] the old river [SEP]"

    def test_a_folder(self, hub: HubServer, run_context: RunContext, tmp_path: Path) -> None:
        ByteBPE(vocab_size=300).build(iter(CORPUS), run_context).save_pretrained(tmp_path / "tokenizer")
        with hub.unplugged():
            tokenizer = PretrainedTokenizer(path=str(tmp_path / "tokenizer")).build([], run_context)
        assert len(tokenizer) == 300

    def test_a_revision_is_the_one_asked_for(self, hub: HubServer, run_context: RunContext) -> None:
        before = gpt2_repository(CORPUS[:1])
        old = hub.publish("model", "example/moving", before, revision="v1")
        hub.publish("model", "example/moving", gpt2_repository(CORPUS))
        sizes = [
            len(PretrainedTokenizer(path="example/moving", revision=revision).build([], run_context))
            for revision in (None, "main", "v1", old)
        ]
        assert sizes[0] == sizes[1] > sizes[2] == sizes[3]

    @pytest.mark.parametrize("revision", [None, "main", "v2"])
    def test_what_was_read_once_is_found_without_the_hub(
        self, hub: HubServer, run_context: RunContext, caplog: pytest.LogCaptureFixture, revision: str | None
    ) -> None:
        name = f"example/kept-{revision or 'unnamed'}"
        hub.publish("model", name, gpt2_repository(CORPUS), revision=revision or "main")
        online = PretrainedTokenizer(path=name, revision=revision).build([], run_context)
        caplog.set_level(logging.INFO, logger="toolkit")
        with hub.unplugged():
            cached = PretrainedTokenizer(path=name, revision=revision).build([], run_context)
        assert cached.get_vocab() == online.get_vocab()
        assert caplog.messages == [f"The Hub cannot be reached; looking for the tokenizer of {name} in the cache."]

    def test_a_file_alone_gets_its_end_token_by_name(
        self, run_context: RunContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ByteBPE(vocab_size=300).build(iter(CORPUS), run_context).backend_tokenizer.save(
            str(tmp_path / "tokenizer.json")
        )
        nameless = PretrainedTokenizer(path=str(tmp_path)).build([], run_context)
        assert nameless.eos_token is None
        with pytest.raises(OptionError, match=r"option eos_token: '<\|endoftext\|>', say, which it has"):
            CausalLM().document_end(nameless)
        caplog.set_level(logging.INFO, logger="toolkit")
        named = PretrainedTokenizer(path=str(tmp_path), eos_token="<|endoftext|>").build([], run_context)
        assert CausalLM().document_end(named) == (nameless.get_vocab()["<|endoftext|>"],)
        assert len(named) == len(nameless)
        assert not caplog.messages
        added = PretrainedTokenizer(path=str(tmp_path), eos_token="</doc>").build([], run_context)
        assert added.eos_token_id == len(nameless)
        assert f"</doc> is added to the tokenizer of {tmp_path} as its end token" in caplog.messages
        added.save_pretrained(tmp_path / "again")
        again = PretrainedTokenizer(path=str(tmp_path / "again")).build([], run_context)
        assert again("a text</doc>")["input_ids"][-1] == again.eos_token_id == added.eos_token_id

    def test_a_model_without_a_tokenizer(self, hub: HubServer, run_context: RunContext, tmp_path: Path) -> None:
        """transformers makes a tokenizer of a config alone, and it encodes every text to nothing."""
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        option, message = refused(run_context, path=str(tmp_path))
        assert option == "path"
        assert "it holds no tokenizer" in message
        assert "byte-bpe" in message

    @pytest.mark.parametrize(
        ("name", "files", "part"),
        [
            ("bare", {"README.md": "x"}, "cannot be used: "),
            ("no-tokenizer", {"config.json": '{"model_type": "gpt2"}'}, "holds no tokenizer"),
            ("broken", {"config.json": '{"model_type": "gpt2"}', "tokenizer.json": "{nope"}, "cannot be used: "),
            ("foreign", {"config.json": '{"model_type": "gpt2"}', "tokenizer.json": "{}"}, "cannot be used: "),
            (
                "own-code",
                {
                    "config.json": '{"model_type": "new", "auto_map": {"AutoConfig": "code.Config"}}',
                    "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}',
                    "code.py": "raise SystemExit('it was run')",
                },
                "it comes with code of its own, which the toolkit does not run",
            ),
        ],
    )
    def test_what_cannot_be_used(
        self,
        hub: HubServer,
        run_context: RunContext,
        capfd: pytest.CaptureFixture[str],
        name: str,
        files: dict[str, bytes | str],
        part: str,
    ) -> None:
        hub.publish("model", f"example/{name}", files)
        option, message = refused(run_context, path=f"example/{name}")
        assert option == "path"
        assert part in message
        assert "\n" not in message
        assert capfd.readouterr() == ("", "")

    def test_no_such_model(self, hub: HubServer, run_context: RunContext) -> None:
        option, message = refused(run_context, path="openai-community/gpt-2")
        assert option == "path"
        assert "the Hub has no model 'openai-community/gpt-2'" in message

    @pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
    def test_no_such_folder(self, run_context: RunContext, path: str) -> None:
        assert refused(run_context, path=path) == ("path", f"there is no folder {path}")

    def test_no_such_revision(self, hub: HubServer, run_context: RunContext) -> None:
        option, message = refused(run_context, path="openai-community/gpt2", revision="v9")
        assert option == "revision"
        assert "openai-community/gpt2 has no revision 'v9'" in message

    def test_a_name_that_cannot_be(self, hub: HubServer, run_context: RunContext) -> None:
        option, message = refused(run_context, path="a/b/c")
        assert option == "path"
        assert "'a/b/c' cannot be the name of a model" in message

    def test_gated(self, hub: HubServer, run_context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
        option, message = refused(run_context, UnavailableError, path="example/gated")
        assert option == "path"
        assert f"accept its terms on {hub.endpoint}/example/gated, then set HF_TOKEN" in message
        monkeypatch.setenv("HF_TOKEN", MEMBER)
        assert len(PretrainedTokenizer(path="example/gated").build([], run_context)) == 512

    def test_the_hub_is_out_of_reach(self, hub: HubServer, run_context: RunContext) -> None:
        with hub.unplugged():
            option, message = refused(run_context, UnavailableError, path="example/never-seen")
        assert option == "path"
        ways = ("--rehearse", "HF_HUB_OFFLINE=1", "HF_ENDPOINT", "byte-bpe")
        assert [way for way in ways if way not in message] == []

    def test_a_hub_that_fails(self, hub: HubServer, run_context: RunContext) -> None:
        with hub.failing(500):
            _, message = refused(run_context, UnavailableError, path="openai-community/gpt2")
        assert "answers with status 500" in message

    def test_nothing_is_printed(
        self, hub: HubServer, run_context: RunContext, capfd: pytest.CaptureFixture[str]
    ) -> None:
        hub.publish("model", "example/loud", gpt2_repository(CORPUS))
        PretrainedTokenizer(path="example/loud").build([], run_context)
        assert capfd.readouterr() == ("", "")
