"""Pretrained weights, from the Hub or from a folder, as the starting point of training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import Field, PrivateAttr

from toolkit.api import Model, OptionError, RunContext, UnavailableError
from toolkit_plugins.hub_downloads import shown, size_on_the_hub
from toolkit_plugins.library_errors import reading
from toolkit_plugins.model.loading import (
    from_config,
    language_model,
    load,
    note_new_tokens,
    resize,
    without_unused_settings,
    without_weights,
)
from toolkit_plugins.model.sizes import vocabulary_size
from toolkit_plugins.model.small import shrunk, stand_in
from toolkit_plugins.repository_files import Repository, check_config, check_weights, find

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
"""Models that number positions from pad_token_id + 1, as fairseq did, and so have fewer positions than table rows."""
CAUSALITY_TOLERANCE = 1e-4
"""How much later tokens may change earlier logits, as a share of the logits' spread: rounding in a mixture of experts
changes them by 1e-6, an untrained BERT by 1e-3."""
CONFIG_ERRORS = (OSError, ValueError, KeyError, ImportError)
"""What transformers raises about a config; anything else is about our changes to it, or about fake tensors."""


class PretrainedModel(Model):
    """Continue from pretrained weights: those of a Hub repository, or of a folder that `save_pretrained` wrote.

    Weights are read from safetensors only, and no code of the repository is run. Of a multimodal model, only the
    language model is kept and trained.
    """

    local_paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    """Repository on the Hub (openai-community/gpt2), or a local folder."""
    revision: str | None = None
    """Branch, tag or commit of the repository. Only a commit pins the weights for good."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Set all of the model's dropout probabilities to this; if not given, they stay as published."""
    resize_embeddings: bool = False
    """Add rows for tokens new to the model to its embedding and its head, each initialized to the mean of the old rows
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html), instead of refusing the tokenizer."""
    allow_missing_weights: bool = False
    """Initialize weights that the checkpoint lacks at random, such as the task's head, instead of refusing it."""

    _small: bool = PrivateAttr(default=False)

    def rehearse(self) -> Self:
        """The same architecture with two layers of 64 and random weights."""
        copy = self.model_copy()
        copy._small = True
        return copy

    def build(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Load the weights in float32, with the task's head, after checking what can be checked without them."""
        if self._small:
            model = self._build_small(tokenizer, run)
        else:
            config, repository = self._checked(tokenizer, run)
            model = self._load(config, repository, run)
            if added := self._added_tokens(model.config, tokenizer):
                resize(model, added)
                run.log.info("%s new tokens start at the mean of %s's embedding", len(added), self.path)
        if run.task == "causal-lm":
            self._check_causal(model)
            if getattr(model, "loss_type", "") is None:
                model.loss_type = "ForCausalLM"  # transformers cannot infer it from GPT-2's class name, and warns
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        """Build from the config alone: no weights are downloaded, so a bidirectional model is not detected."""
        if self._small:
            return self._build_small(tokenizer, run)
        config, repository = self._checked(tokenizer, run)
        text = config.get_text_config()
        added = self._added_tokens(text, tokenizer)
        text.vocab_size += len(added)
        with self._reading(repository, errors=CONFIG_ERRORS):
            model = from_config(text, run)
        note_new_tokens(model, added)
        return model

    def _checked(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> tuple[PreTrainedConfig, Repository]:
        """The config and the repository, after every check that needs no weights loaded."""
        config, repository = self._config()
        text = config.get_text_config()
        self._check_positions(text, run)
        self._check_vocabulary(text, tokenizer, run)
        check_weights(repository)
        return config, repository

    def _config(self) -> tuple[PreTrainedConfig, Repository]:
        """The config, and where it and the weights are."""
        from transformers import AutoConfig

        repository = find(self.path, revision=self.revision)
        check_config(repository)
        with self._reading(repository, "the config"):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, trust_remote_code=False, **repository.where
            )
            text = config.get_text_config()
            values = text.to_dict()
        if text.is_encoder_decoder or config.is_encoder_decoder:
            raise self._refusal(
                f"it is an encoder-decoder ({config.model_type}), whose decoder expects what an encoder has read; take "
                f"a model that is a decoder (gpt2, llama) or an encoder (bert) alone"
            )
        if getattr(text, "vocab_size", None) is None:
            raise self._refusal(f"a {config.model_type} is not a language model: its config has no vocab_size")
        if quantized := getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
            how = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
            raise self._refusal(
                f"its weights are quantized ({how or 'its config has a quantization_config'}) and cannot be trained; "
                f"take the model that they were made from, with the memory strategy qlora if it has to be small"
            )
        if self.dropout is not None:
            for name, value in values.items():
                if re.search("dropout|pdrop", name) and type(value) in (int, float):
                    setattr(text, name, self.dropout)
        return config, repository

    def _download_shown(self, repository: Repository, run: RunContext) -> AbstractContextManager[None]:
        if not repository.is_remote:
            return nullcontext()
        weights, commit = repository.named(".safetensors"), repository.where.get("revision")
        total = partial(size_on_the_hub, self.path, weights, revision=commit)
        return shown(self.path, run.progress, kind="model", total=total)

    def _load(self, config: PreTrainedConfig, repository: Repository, run: RunContext) -> PreTrainedModel:
        text = config.get_text_config()
        with self._reading(repository):
            if text is not config:
                alone = without_weights(text, run)  # if it has no model with such a head, fails before any loading
            with self._download_shown(repository, run):
                model, report = load(self.path, config, run, **repository.where)
        self._check_complete(model, report, run)
        if unset := without_unused_settings(getattr(model, "generation_config", None)):
            run.log.info(
                "%s sets %s for generating, which do nothing beside its other settings and cannot be saved: left out",
                self.path,
                ", ".join(unset),
            )
        if text is config:
            # For an adapter, which records the weights that it belongs to.
            model.base_revision = repository.where.get("revision")  # type: ignore[assignment]  # lora reads it
            return model
        if (language := language_model(model, alone)) is None:
            raise self._refusal(f"the language model of a {config.model_type} cannot be taken out of it")
        run.log.info("%s is multimodal: its language model is trained, without the rest", self.path)
        return language

    def _check_complete(self, model: PreTrainedModel, report: Mapping[str, Any], run: RunContext) -> None:
        """Refuse a checkpoint that would leave weights of the model randomly initialized."""
        name = type(model).__name__
        if mismatched := sorted(report["mismatched_keys"]):
            weight, has, needs = mismatched[0]
            raise self._refusal(
                f"its config.json is not that of its weights: {weight} has the shape {tuple(has)}, and {tuple(needs)} "
                f"by the config ({len(mismatched)} such); fetch both again"
            )
        # Buffers are computed, and what requires no gradient is not a weight.
        trained = {key for key, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
        missing = sorted(trained.intersection(report["missing_keys"]))
        unread = _listed(sorted(report["unexpected_keys"]))
        if not missing:
            if unread:
                run.log.info("%s has weights that %s does not read: %s", self.path, name, unread)
        elif self.allow_missing_weights:
            run.log.info("%s has no weights for %s: these start at random", self.path, _listed(missing))
        else:
            raise self._refusal(
                f"it has no weights for {_listed(missing)} of {name}, which would start at random"
                + (f" (and has {unread}, which {name} does not read)" if unread else "")
                + f"; take a checkpoint that was trained for {run.task}, or set allow_missing_weights: true"
            )

    def _build_small(self, tokenizer: PreTrainedTokenizerBase, run: RunContext) -> PreTrainedModel:
        repository = find(self.path, revision=self.revision)
        try:
            config, repository = self._config()
            config = config.get_text_config()
        except UnavailableError:
            if not repository.is_remote:
                raise
            config = stand_in(run)
            run.log.info(
                "the Hub cannot be reached for the config of %s, so a tiny %s stands in for it",
                self.path,
                config.model_type,
            )
        self._check_positions(config, run)
        if not repository.is_remote:  # from the Hub, only the config is fetched
            check_weights(repository)
        with self._reading(repository, errors=CONFIG_ERRORS):
            model = from_config(shrunk(config, tokenizer), run)
        model.name_or_path = self.path  # where an adapter's base can be found
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
        if needs > has and not self.resize_embeddings:
            own = f"; or take the model's own tokenizer: {{plugin: pretrained, path: {self.path}}}"
            raise OptionError(
                f"{self.path} knows {has:,} tokens and the tokenizer has {needs:,}; give the new ones rows in its "
                f"embedding with the model's option resize_embeddings: true"
                f"{'' if tokenizer.name_or_path == self.path else own}",
                option="path",
            )
        if needs < 0.9 * has:  # if closer, it is the model's own tokenizer and the table was rounded up
            run.log.info(
                "%s knows %s tokens and the tokenizer has %s: unless it is the model's own, what the embeddings "
                "have learned is of no use",
                self.path,
                f"{has:,}",
                f"{needs:,}",
            )

    def _added_tokens(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> range:
        """The token ids for which the embedding has to be enlarged."""
        return range(config.vocab_size, max(config.vocab_size, vocabulary_size(tokenizer)))

    def _check_causal(self, model: PreTrainedModel) -> None:
        """Refuse a model that sees the tokens it is to predict: BERT loads with this head, and would learn to copy."""
        import torch

        known = cast(int, model.get_input_embeddings().num_embeddings)
        ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10, 11]]) % known
        training = model.training
        with torch.no_grad():
            earlier = model.train(False)(input_ids=ids).logits[:, :4].float()
        model.train(training)
        change, spread = (earlier[0] - earlier[1]).abs().max(), earlier.max() - earlier.min()
        if change > CAUSALITY_TOLERANCE * spread:
            raise OptionError(
                f"{self.path} looks at the tokens on both sides, so it cannot learn to predict the next one; "
                f"take the objective masked-lm",
                option="path",
            )

    def _reading(
        self, repository: Repository, what: str = "the model", errors: tuple[type[Exception], ...] = (Exception,)
    ) -> AbstractContextManager[None]:
        return reading(repository, revision=self.revision, what=what, errors=errors)

    def _refusal(self, message: str) -> OptionError:
        return OptionError(f"{self.path} cannot be used: {message}", option="path")


def _listed(names: list[str]) -> str:
    """The first name, and how many more there are; empty if there are none."""
    return "" if not names else names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
