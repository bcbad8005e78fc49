"""Models: their sizes, their tokens, and what they say when they cannot be had."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.hub_server import HubServer
from tests.tiny import with_holes
from toolkit.api import Model, OptionError, RunContext, UnavailableError, learning_rate_scales
from toolkit_plugins.model.gpt2 import GPT2
from toolkit_plugins.model.llama import Llama
from toolkit_plugins.model.pretrained import PretrainedModel
from toolkit_plugins.model.sizes import Shape, derive, in_words, parameter_count
from toolkit_plugins.tokenizer.byte_bpe import ByteBPE

GPT2_PATH = "openai-community/gpt2"
BERT_PATH = "google-bert/bert-base-uncased"


@pytest.fixture
def tokenizer(run_context: RunContext) -> PreTrainedTokenizerBase:
    return ByteBPE(vocab_size=300).build(["some words, and some more words"] * 3, run_context)


@pytest.fixture
def published_tokenizer(hub: HubServer) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(GPT2_PATH)


def refused(model: Model, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> OptionError:
    with pytest.raises(OptionError) as caught:
        model.build(tokenizer, run)
    return caught.value


def gpt2_size(vocabulary: int, positions: int = 1024):
    return lambda s: (vocabulary + positions + 2) * s.width + s.layers * (12 * s.width**2 + 13 * s.width)


class TestSizes:
    @pytest.mark.parametrize(
        ("said", "count"),
        [("30M", 30_000_000), ("1.3B", 1_300_000_000), ("250k", 250_000), ("124 M", 124_000_000), (5000, 5000)],
    )
    def test_how_people_say_it(self, said: str | int, count: int) -> None:
        assert parameter_count(said) == count

    @pytest.mark.parametrize("said", ["thirty", "30MB", "-3M", "0", "1e6", ""])
    def test_how_they_do_not(self, said: str) -> None:
        with pytest.raises(ValueError, match=r"write 30M, 1\.3B or 30000000"):
            parameter_count(said)

    @pytest.mark.parametrize(
        ("said", "vocabulary", "shape"),
        [
            ("30M", 8000, Shape(layers=8, width=512, heads=8)),
            ("124M", 50257, Shape(layers=12, width=768, heads=12)),  # GPT-2
            ("1.3B", 50257, Shape(layers=24, width=2048, heads=32)),  # GPT-3 XL
        ],
    )
    def test_the_fields_own_models_come_out(self, said: str, vocabulary: int, shape: Shape) -> None:
        assert derive(parameter_count(said), gpt2_size(vocabulary)) == shape

    @pytest.mark.parametrize("target", [100_000, 1_000_000, 4_000_000, 10**7, 10**8, 10**9, 10**10])
    def test_the_size_is_met_within_a_tenth_in_usual_proportions(self, target: int) -> None:
        count = gpt2_size(300)
        shape = derive(target, count)
        assert abs(count(shape) / target - 1) < 0.1
        assert shape.width % shape.heads == 0
        assert 8 <= shape.width / shape.layers <= 192
        assert shape.width // shape.heads == 64 or shape.width < 256

    def test_a_size_that_the_vocabulary_alone_exceeds_is_refused(self) -> None:
        with pytest.raises(OptionError, match="the nearest has 827K") as caught:
            derive(300_000, gpt2_size(50257))
        assert caught.value.option == "parameters"

    def test_numbers_in_words(self) -> None:
        assert [in_words(n) for n in (29_840_000, 1_310_000_000, 999, 124_000_000)] == ["29.8M", "1.31B", "999", "124M"]


class TestFromScratch:
    @pytest.mark.parametrize(
        "plugin",
        [
            GPT2(num_hidden_layers=3, hidden_size=48, num_attention_heads=4),
            GPT2(num_hidden_layers=3, hidden_size=48, num_attention_heads=4, tie_word_embeddings=False),
            Llama(num_hidden_layers=3, hidden_size=48, num_attention_heads=4),
            Llama(
                num_hidden_layers=2,
                hidden_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=100,
                tie_word_embeddings=False,
            ),
            GPT2(parameters="200K"),
            Llama(parameters=200_000),
        ],
        ids=["gpt2", "untied gpt2", "llama", "llama with shared keys, untied", "gpt2 of 200K", "llama of 200K"],
    )
    def test_the_size_that_is_told_is_the_models(
        self,
        plugin: GPT2 | Llama,
        tokenizer: PreTrainedTokenizerBase,
        run_context: RunContext,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.INFO, "toolkit"):
            model = plugin.build(tokenizer, run_context)
        size = sum(parameter.numel() for parameter in model.parameters())
        assert in_words(size) in caplog.text
        if plugin.parameters:
            assert size == pytest.approx(200_000, rel=0.1)
            assert f"{plugin.parameters if isinstance(plugin.parameters, str) else '200K'} parameters: " in caplog.text

    @pytest.mark.parametrize("plugin", [GPT2(parameters="200K"), Llama(parameters="200K")])
    def test_tokens_positions_and_attention_are_the_runs(
        self, plugin: Model, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        model = plugin.build(tokenizer, run_context)
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        assert end != pad
        assert model.config.vocab_size == len(tokenizer)
        assert model.config.max_position_embeddings == run_context.block_size
        assert model.config._attn_implementation == "sdpa"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        for config in (model.config, model.generation_config):
            assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (end, end, pad)
        ids = torch.randint(len(tokenizer), (1, run_context.block_size))
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(torch.tensor(300.0).log().item(), abs=0.3)

    @pytest.mark.parametrize("plugin", [GPT2(parameters="100K"), Llama(parameters="100K")])
    def test_the_embedding_has_a_row_for_the_highest_id(self, plugin: Model, run_context: RunContext) -> None:
        tokenizer = with_holes(400)
        model = plugin.build(tokenizer, run_context)
        assert model.config.vocab_size == max(tokenizer.get_vocab().values()) + 1 > len(tokenizer)

    @pytest.mark.parametrize("plugin", [GPT2(parameters="100K"), Llama(parameters="100K")])
    def test_the_seed_decides_the_weights(
        self, plugin: Model, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            model = plugin.build(tokenizer, run_context)
            weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_dropout_is_set_everywhere(self, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
        model = GPT2(parameters="100K", dropout=0.25).build(tokenizer, run_context)
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {0.25}

    @pytest.mark.parametrize("plugin", [GPT2, Llama])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "say how large"),
            ({"parameters": "30M", "hidden_size": 64}, "not both"),
            ({"parameters": "many"}, "write 30M"),
            ({"num_hidden_layers": 2}, "say how large"),
            ({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 5}, "does not divide"),
        ],
    )
    def test_a_size_said_wrongly_is_refused(
        self, plugin: type[Model], options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            plugin(**options)

    def test_shared_keys_must_divide_the_heads(self) -> None:
        with pytest.raises(ValidationError, match="num_key_value_heads 3 does not divide"):
            Llama(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=3)

    @pytest.mark.parametrize("plugin", [GPT2(parameters="100K"), Llama(parameters="100K")])
    def test_no_masked_lm(self, plugin: Model, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
        assert "causal-lm" in refused(plugin, tokenizer, replace(run_context, task="masked-lm")).message

    def test_a_block_must_fit(self, tokenizer: PreTrainedTokenizerBase, run_context: RunContext) -> None:
        error = refused(GPT2(parameters="100K", max_position_embeddings=32), tokenizer, run_context)
        assert error.option == "max_position_embeddings"
        assert "block_size" in error.message

    def test_a_rehearsal_is_small_and_keeps_its_kind(
        self, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        large = Llama(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
        for plugin in (large.rehearse(), GPT2(parameters="13B").rehearse(), Llama(parameters="70B").rehearse()):
            config = plugin.build(tokenizer, run_context).config
            assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 64, 2)
        assert large.rehearse().build(tokenizer, run_context).config.num_key_value_heads == 1


class TestPretrained:
    def test_the_published_weights_in_float32(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        model = PretrainedModel(path=GPT2_PATH, dropout=0.0).build(published_tokenizer, run_context)
        published = hub.repositories["model", GPT2_PATH].revisions["main"]
        tensors = load(published.files["model.safetensors"])
        assert all(torch.equal(model.transformer.state_dict()[name], value) for name, value in tensors.items())
        assert model.dtype == torch.float32
        assert model.base_revision == published.commit
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}

    def test_settings_for_generating_that_cannot_be_saved_are_left_out(
        self,
        published_tokenizer: PreTrainedTokenizerBase,
        run_context: RunContext,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "toolkit")
        GPT2(parameters="100K").build(published_tokenizer, run_context).save_pretrained(tmp_path)
        settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "max_new_tokens": 9, "pad_token_id": -1}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        model = PretrainedModel(path=str(tmp_path)).build(published_tokenizer, run_context)
        assert "sets pad_token_id, temperature, top_p for generating" in caplog.text
        model.generation_config.max_length = 30  # a changed one is what transformers refuses to save
        model.save_pretrained(tmp_path / "again")
        saved = json.loads((tmp_path / "again" / "generation_config.json").read_text())
        assert (saved["do_sample"], saved["max_new_tokens"]) == (False, 9)

    def test_dropout_is_as_published_unless_given(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        config = PretrainedModel(path=GPT2_PATH).build(published_tokenizer, run_context).config
        assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)

    def test_bert_with_the_head_of_the_task(self, hub: HubServer, run_context: RunContext) -> None:
        tokenizer = AutoTokenizer.from_pretrained(BERT_PATH)
        run = replace(run_context, task="masked-lm")
        model = PretrainedModel(path=BERT_PATH, dropout=0.0).build(tokenizer, run)
        assert type(model).__name__ == "BertForMaskedLM"
        assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.0, 0.0)

    def test_a_folder_is_as_good_as_a_repository(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext, tmp_path: Path
    ) -> None:
        PretrainedModel(path=GPT2_PATH).build(published_tokenizer, run_context).save_pretrained(tmp_path / "mine")
        with hub.unplugged():
            model = PretrainedModel(path=str(tmp_path / "mine")).build(published_tokenizer, run_context)
        assert model.config.n_embd == 32

    @pytest.mark.parametrize(
        ("options", "option", "message"),
        [
            ({"path": "openai-community/gpt3"}, "path", "the Hub has no model"),
            ({"path": GPT2_PATH, "revision": "nope"}, "revision", "no revision 'nope'"),
            ({"path": BERT_PATH}, "path", "looks at the tokens on both sides"),
        ],
    )
    def test_what_cannot_be_used(
        self,
        hub: HubServer,
        published_tokenizer: PreTrainedTokenizerBase,
        run_context: RunContext,
        options: dict[str, str],
        option: str,
        message: str,
    ) -> None:
        error = refused(PretrainedModel(**options), published_tokenizer, run_context)
        assert error.option == option
        assert message in error.message

    def test_a_model_without_the_head_of_the_task(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        run = replace(run_context, task="masked-lm")
        assert (
            "no head for this objective" in refused(PretrainedModel(path=GPT2_PATH), published_tokenizer, run).message
        )

    def test_a_block_longer_than_the_model_reads_costs_no_download(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        hub.publish("model", "example/short", dict(hub.repositories["model", GPT2_PATH].revisions["main"].files))
        hub.requests.clear()
        run = replace(run_context, block_size=512)
        error = refused(PretrainedModel(path="example/short"), published_tokenizer, run)
        assert "at most 256 tokens" in error.message
        assert "block_size to 256 or less" in error.message
        assert not [request for request in hub.requests if "safetensors" in request.path]

    def test_a_tokenizer_with_more_tokens_than_the_model(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        published_tokenizer.add_tokens(["<one-too-many>"])
        own = refused(PretrainedModel(path=GPT2_PATH), published_tokenizer, run_context).message
        assert "knows 512 tokens and the tokenizer has 513" in own
        assert "resize_embeddings: true" in own
        assert "the model's own tokenizer" not in own
        published_tokenizer.name_or_path = "example/another"
        another = refused(PretrainedModel(path=GPT2_PATH), published_tokenizer, run_context).message
        assert f"the model's own tokenizer: {{plugin: pretrained, path: {GPT2_PATH}}}" in another

    def test_weights_that_are_not_safetensors(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        files = dict(hub.repositories["model", GPT2_PATH].revisions["main"].files)
        files["pytorch_model.bin"] = files.pop("model.safetensors")
        hub.publish("model", "example/pickled", files)
        error = refused(PretrainedModel(path="example/pickled"), published_tokenizer, run_context)
        assert "safetensors" in error.message

    def test_code_of_a_repository_is_not_run(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
        hub.publish("model", "example/own", {"config.json": json.dumps(config), "own.py": "raise SystemExit('ran')"})
        error = refused(PretrainedModel(path="example/own"), published_tokenizer, run_context)
        assert "code of its own" in error.message

    def test_an_unreachable_hub(
        self, hub: HubServer, published_tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        with hub.unplugged(), pytest.raises(UnavailableError) as caught:
            PretrainedModel(path="example/never-seen").build(published_tokenizer, run_context)
        assert "cannot be reached" in caught.value.message

    def test_a_rehearsal_shrinks_the_same_architecture(
        self, hub: HubServer, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        hub.requests.clear()
        plugin = PretrainedModel(path=GPT2_PATH).rehearse()
        model = plugin.build(tokenizer, run_context)
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert (model.config.n_layer, model.config.n_embd, model.config.vocab_size) == (2, 64, len(tokenizer))
        assert plugin.model_dump() == PretrainedModel(path=GPT2_PATH).model_dump()
        assert not [request for request in hub.requests if "safetensors" in request.path]

    @pytest.mark.parametrize(("task", "kind"), [("causal-lm", "gpt2"), ("masked-lm", "bert")])
    def test_a_rehearsal_without_a_network_has_a_stand_in(
        self,
        hub: HubServer,
        tokenizer: PreTrainedTokenizerBase,
        run_context: RunContext,
        caplog: pytest.LogCaptureFixture,
        task: str,
        kind: str,
    ) -> None:
        with hub.unplugged(), caplog.at_level(logging.INFO, "toolkit"):
            run = replace(run_context, task=task)
            model = PretrainedModel(path="example/never-seen").rehearse().build(tokenizer, run)
        assert model.config.model_type == kind
        assert model.config.hidden_size == 64
        assert f"a tiny {kind} stands in" in caplog.text

    def test_llamas_per_layer_facts_are_cut_with_its_layers(
        self, hub: HubServer, tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        from transformers import Qwen3Config

        config = Qwen3Config(num_hidden_layers=6, layer_types=["full_attention"] * 6)
        hub.publish("model", "example/qwen", {"config.json": config.to_json_string(use_diff=False)})
        model = PretrainedModel(path="example/qwen").rehearse().build(tokenizer, run_context)
        assert model.config.layer_types == ["full_attention"] * 2
        assert model.config.head_dim == 32


@pytest.mark.parametrize("plugin", [GPT2, Llama])
class TestMuP:
    def test_weights_and_learning_rates_scale_with_the_width(
        self, plugin: type[GPT2 | Llama], tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        """Table 3 of https://arxiv.org/abs/2203.03466: embedding 1, 1; hidden 1/sqrt(n), 1/n; head 1/n, 1/n."""
        options = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8, "tie_word_embeddings": False}
        torch.manual_seed(0)
        plain = plugin(**options).build(tokenizer, run_context)
        torch.manual_seed(0)
        model = plugin(**options, mup_base_hidden_size=64).build(tokenizer, run_context)
        scales = learning_rate_scales(model)
        seen = set()
        for (name, parameter), before in zip(model.named_parameters(), plain.parameters(), strict=True):
            if parameter.ndim < 2 or "wte" in name or "wpe" in name or "embed_tokens" in name:
                weight, rate = 1.0, 1.0
            else:
                weight, rate = (1 / 4, 1 / 4) if name.startswith("lm_head") else (1 / 2, 1 / 4)
            assert torch.equal(parameter, before * weight), name
            assert scales[parameter] == rate, name
            seen.add((weight, rate))
        assert len(seen) == 3
        assert set(learning_rate_scales(copy.deepcopy(model)).values()) == {1.0, 0.25}
        assert set(learning_rate_scales(plain).values()) == {1.0}

    @pytest.mark.parametrize(("base", "width", "heads"), [(128, 512, 16), (256, 512, 8), (64, 96, 6), (128, 128, 4)])
    def test_heads_keep_the_size_of_the_base(
        self,
        plugin: type[GPT2 | Llama],
        base: int,
        width: int,
        heads: int,
        tokenizer: PreTrainedTokenizerBase,
        run_context: RunContext,
    ) -> None:
        options = {"num_hidden_layers": 1, "tie_word_embeddings": False, "mup_base_hidden_size": base}
        config = plugin(**options, hidden_size=width).build(tokenizer, run_context).config
        assert config.num_attention_heads == heads

    def test_a_size_is_reached_with_heads_of_the_base(
        self, plugin: type[GPT2 | Llama], tokenizer: PreTrainedTokenizerBase, run_context: RunContext
    ) -> None:
        wide = plugin(parameters="2M", tie_word_embeddings=False, mup_base_hidden_size=64)
        model = wide.build(tokenizer, run_context)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(2e6, rel=0.1)
        assert model.config.hidden_size // model.config.num_attention_heads == 16
        assert min(learning_rate_scales(model).values()) == 64 / model.config.hidden_size

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"hidden_size": 64}, "set tie_word_embeddings: false"),
            ({"hidden_size": 80, "tie_word_embeddings": False}, "take a multiple of it as hidden_size, not 80"),
        ],
    )
    def test_what_cannot_be_scaled_is_refused(
        self, plugin: type[GPT2 | Llama], options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message):
            plugin(num_hidden_layers=2, mup_base_hidden_size=128, **options)
