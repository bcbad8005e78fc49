"""A model from the Hub, or from a folder, as the start of the training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PrivateAttr

from toolkit.api import Model, OptionError, RunContext, UnavailableError
from toolkit_plugins.hub_errors import explained, look_up
from toolkit_plugins.model.sizes import TINY, vocabulary_size

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FIRST_POSITION_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
"""Models that number positions from pad_token_id + 1, as fairseq did, and so have fewer than their table's rows."""


class PretrainedModel(Model):
    """Go on from published weights: those of a Hub repository, or of a folder that `save_pretrained` wrote.

    Weights are read from safetensors alone and no code of the repository is run.
    """

    path: str
    """Repository on the Hub (openai-community/gpt2), or a local folder."""
    revision: str | None = None
    """Branch, tag or commit of the repository. A commit makes the start the same for ever."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Set all of the model's dropouts to this; if not given, they are as published."""

    _small: bool = PrivateAttr(default=False)

    def rehearse(self) -> Self:
        """The same architecture with two layers of 64 and random weights."""
        copy = self.model_copy()
        copy._small = True
        return copy

    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Load the weights in float32, with the task's head, after checking what needs no weights."""
        if self._small:
            model = self._build_small(tokenizer, run)
        else:
            config, where = self._config()
            self._check_positions(config, run)
            self._check_vocabulary(config, tokenizer, run)
            model = self._load(config, where, run)
        if run.task == "causal-lm":
            self._check_causal(model)
            if getattr(model, "loss_type", "") is None:
                model.loss_type = "ForCausalLM"  # transformers cannot tell it from GPT-2's class name, and says so
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Build from the config alone: weights are not downloaded, and a bidirectional one is not found out."""
        if self._small:
            return self._build_small(tokenizer, run)
        config, _ = self._config()
        self._check_positions(config, run)
        self._check_vocabulary(config, tokenizer, run)
        with self._refusals():
            return self._from(config, run)

    def _config(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        """The config, and where the weights are: keyword arguments for `from_pretrained`."""
        from transformers import AutoConfig

        with self._refusals():
            if Path(self.path).is_dir():
                where: dict[str, Any] = {"local_files_only": True}
            else:
                commit = look_up(self.path, kind="model", revision=self.revision).commit
                # No commit: the Hub cannot be asked, and the cache is all there is.
                where = {"revision": commit or self.revision, "local_files_only": commit is None}
            config: PreTrainedConfig = AutoConfig.from_pretrained(self.path, trust_remote_code=False, **where)
        if self.dropout is not None:
            for name, value in config.to_dict().items():
                if re.search("dropout|pdrop", name) and type(value) in (int, float):
                    setattr(config, name, self.dropout)
        return config, where

    def _load(self, config: PreTrainedConfig, where: dict[str, Any], run: RunContext) -> PreTrainedModel:
        import torch

        with self._refusals():
            model: PreTrainedModel
            model, report = _auto_class(run).from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **where,
            )
        # For an adapter, which names the weights that it belongs to.
        model.base_revision = where.get("revision")  # type: ignore[assignment]  # a note on the module, for lora
        if missing := sorted(report["missing_keys"]):
            run.log.info(
                "%s has no weights for %s (%s in all), so these start at random", self.path, missing[0], len(missing)
            )
        if unset := without_unused_settings(getattr(model, "generation_config", None)):
            run.log.info(
                "%s sets %s for generating, which do nothing beside its other settings and cannot be saved: left out",
                self.path,
                ", ".join(unset),
            )
        return model

    def _from(self, config: PreTrainedConfig, run: RunContext) -> PreTrainedModel:
        """A model with weights of the type that `_load` gives them, whatever was published."""
        import torch

        model: PreTrainedModel = _auto_class(run).from_config(config, dtype=torch.float32)
        return model

    def _build_small(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        try:
            config, _ = self._config()
        except UnavailableError:
            config = _stand_in(run)
            run.log.info(
                "the Hub cannot be reached for the config of %s, so a tiny %s stands in for it",
                self.path,
                config.model_type,
            )
        self._check_positions(config, run)
        with self._refusals():
            model = self._from(shrunk(config, tokenizer), run)
        model.name_or_path = self.path  # where an adapter's base is to be found
        return model

    def _check_positions(self, config: PreTrainedConfig, run: RunContext) -> None:
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            return  # the architecture has no limit
        if config.model_type in FIRST_POSITION_AFTER_PADDING:
            positions -= config.pad_token_id + 1
        if positions < run.block_size:
            raise OptionError(
                f"{self.path} reads at most {positions:,} tokens and a block has {run.block_size:,}; "
                f"set the objective's block_size to {positions} or less",
                option="path",
            )

    def _check_vocabulary(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> None:
        has, needs = config.vocab_size, vocabulary_size(tokenizer)
        if needs > has:
            raise OptionError(
                f"{self.path} knows {has:,} tokens and the tokenizer has {needs:,}; take the model's own: "
                f"tokenizer: {{plugin: pretrained, path: {self.path}}}",
                option="path",
            )
        if needs < 0.9 * has:  # closer ones are its own, whose table was rounded up
            run.log.info(
                "%s knows %s tokens and the tokenizer has %s: unless it is the model's own, what the embeddings "
                "have learned is of no use",
                self.path,
                f"{has:,}",
                f"{needs:,}",
            )

    def _check_causal(self, model: PreTrainedModel) -> None:
        """Refuse a model that sees the tokens it is to predict: BERT loads with this head, and learns to copy."""
        import torch

        ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]])
        training = model.training
        with torch.no_grad():
            earlier = model.train(False)(input_ids=ids).logits[:, :3]
        model.train(training)
        if not torch.allclose(earlier[0], earlier[1], atol=1e-3):
            raise OptionError(
                f"{self.path} looks at the tokens on both sides, so it cannot learn to predict the next one; "
                f"take the objective masked-lm",
                option="path",
            )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say what the Hub and transformers find wrong with this repository, as a problem of `path`."""
        try:
            with explained(self.path, kind="model", revision=self.revision):
                yield
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0].partition(". ")[0].strip()
            if "custom code" in str(error) or "trust_remote_code" in str(error):
                reason = "it comes with code of its own, which the toolkit does not run"
            elif "safetensors" in str(error):
                reason = "it has no weights in the safetensors format"
            elif "Unrecognized configuration class" in str(error):
                reason = "its architecture has no head for this objective"
            raise OptionError(f"{self.path} cannot be used: {reason}", option="path") from error


def without_unused_settings(config: GenerationConfig | None) -> list[str]:
    """Unset what transformers ignores when generating and refuses to save, and return the names.

    Old models have a temperature beside `do_sample: false`. They load, but their changed copies cannot be saved.
    """
    if config is None:
        return []
    try:
        config.validate(strict=True)
    except ValueError as error:
        unused = re.findall(r"^- `(\w+)`: ", str(error), re.MULTILINE)
        for name in unused:
            setattr(config, name, None)
        config.validate(strict=True)
        return unused
    return []


def _auto_class(run: RunContext) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForCausalLM if run.task == "causal-lm" else AutoModelForMaskedLM


def _stand_in(run: RunContext) -> PreTrainedConfig:
    from transformers import BertConfig, GPT2Config

    if run.task == "causal-lm":
        return GPT2Config(n_positions=run.block_size)
    return BertConfig(max_position_embeddings=run.block_size)


def shrunk(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config with two layers of 64 and the tokenizer's vocabulary; what it says of each layer is cut to match."""
    layers = config.num_hidden_layers
    for name, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(config, name, value[: TINY.layers])
    small = {
        "num_hidden_layers": TINY.layers,
        "hidden_size": TINY.width,
        "num_attention_heads": TINY.heads,
        "intermediate_size": 2 * TINY.width,
        "head_dim": TINY.width // TINY.heads,
        "embedding_size": TINY.width,
    }
    for name, value in small.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = min(config.num_key_value_heads, TINY.heads)
    config.vocab_size = vocabulary_size(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            setattr(config, name, token)
        elif type(published := getattr(config, name, None)) is int and published >= config.vocab_size:
            setattr(config, name, 0)  # some architectures insist on a token that the tokenizer does not have
    return config
