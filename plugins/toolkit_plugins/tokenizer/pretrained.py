"""A pretrained tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from toolkit.api import OptionError, RunContext, Tokenizer
from toolkit_plugins.hub_errors import quiet
from toolkit_plugins.library_errors import reading
from toolkit_plugins.repository_files import check_tokenizer, find, tokenizer_is_cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PROBE = "The quick brown fox jumps over 13 lazy dogs."


class PretrainedTokenizer(Tokenizer):
    """The tokenizer of a model, from the Hub or from a folder."""

    local_paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    """The model's name on the Hub, OWNER/NAME, or a folder with tokenizer files."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; if not given, the newest."""
    eos_token: str | None = Field(default=None, min_length=1)
    """The token that ends a document, if not the tokenizer's own: one of its tokens, or a new one, for which a
    pretrained model needs resize_embeddings. Required for a tokenizer without an EOS token."""

    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Load it as published, check that it works, and set its EOS token if the recipe names one.

        A tokenizer without a pad token stays so: blocks are packed full, and whoever pads later has to choose one.
        """
        tokenizer = self._loaded(run)
        if len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) < 2:
            # transformers silently builds an empty tokenizer where there are no tokenizer files.
            raise OptionError(
                f"{self.path} holds no tokenizer: it has no tokens but special ones; name a model that has one, or "
                f"train one with byte-bpe",
                option="path",
            )
        if self.eos_token and tokenizer.add_special_tokens({"eos_token": self.eos_token}):
            run.log.info("%s is added to the tokenizer of %s as its end token", self.eos_token, self.path)
        return tokenizer

    def _loaded(self, run: RunContext) -> PreTrainedTokenizerBase:
        import transformers

        repository = find(self.path, revision=self.revision)
        check_tokenizer(repository)
        if repository.is_remote and repository.where["local_files_only"]:
            run.log.info("The Hub cannot be reached; looking for the tokenizer of %s in the cache.", self.path)
        where = repository.where
        if repository.is_remote and tokenizer_is_cached(repository):
            # transformers would ask for lists of files of a commit, which cannot have changed.
            where = {**where, "local_files_only": True}
        with quiet(transformers.utils), reading(repository, revision=self.revision, what="the tokenizer"):
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                self.path, trust_remote_code=False, **where
            )
            tokenizer(PROBE)  # some files turn out to be broken only when text is encoded
        return tokenizer
