"""A tokenizer that somebody else has trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.api import OptionError, RunContext, Tokenizer, ToolkitError
from toolkit_plugins.hub_errors import explained, look_up, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "The quick brown fox jumps over 13 lazy dogs."


class PretrainedTokenizer(Tokenizer):
    """The tokenizer of a model, from the Hub or from a folder."""

    path: str
    """The model's name on the Hub, OWNER/NAME, or a folder that holds tokenizer files."""
    revision: str | None = None
    """A branch, a tag or a commit on the Hub; the newest, if not given."""

    def build(self, corpus: Iterable[str], run: RunContext) -> PreTrainedTokenizerBase:
        """Load it as published, and see that it works.

        One without a pad token stays without: blocks are packed full, and whoever pads later has to choose one.
        """
        tokenizer = self._loaded(local_files_only=True) if Path(self.path).is_dir() else self._from_hub(run)
        if len(tokenizer(PROBE, add_special_tokens=False)["input_ids"]) < 2:
            # transformers makes an empty tokenizer, without a word, where there are no tokenizer files.
            raise OptionError(
                f"{self.path} holds no tokenizer: a sentence comes out as no tokens; name a model that has one, or "
                f"train one with byte-bpe",
                option="path",
            )
        return tokenizer

    def _from_hub(self, run: RunContext) -> PreTrainedTokenizerBase:
        if self.path.startswith((".", "/", "~")):
            raise OptionError(f"there is no folder {self.path}", option="path")
        commit = look_up(self.path, kind="model", revision=self.revision).commit
        if commit is None:
            run.log.info("The Hub cannot be reached; looking for the tokenizer of %s in the cache.", self.path)
        return self._loaded(revision=commit or self.revision, local_files_only=commit is None)

    def _loaded(self, **where: str | bool | None) -> PreTrainedTokenizerBase:
        import transformers

        try:
            with quiet(transformers.utils), explained(self.path, kind="model", revision=self.revision):
                tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                    self.path, trust_remote_code=False, **where
                )
        except ToolkitError:
            raise
        except Exception as error:  # the library tokenizers raises nothing more special where a file is damaged
            message = f"the tokenizer of {self.path} cannot be used: {_reason(error)}"
            raise OptionError(message, option="path") from error
        return tokenizer


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it is code of its own, which the toolkit does not run"
    if "backend tokenizer" in str(error):
        return "there are no tokenizer files that can be read; a model that has tokenizer.json works"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
