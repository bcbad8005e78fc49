"""Uploads the exported folder to the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from toolkit.api import Exporter, OptionError, Results, RunContext, UnavailableError
from toolkit_plugins.exporter.model_card import as_uploaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PushToHub(Exporter):
    """Upload the folder that model-folder or merge-lora wrote, with the token in HF_TOKEN.

    The token cannot be an option, because recipes are shared and stored.
    """

    repo_id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository to upload to, OWNER/NAME; created if it does not exist."""
    private: bool = True
    """Whether to make a newly created repository private. An existing one keeps its visibility."""

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """Nothing: files are uploaded from the disk."""
        return 0

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Refuse, before training, an upload for which there is no token."""
        if not run.rehearsal and not os.environ.get("HF_TOKEN"):
            raise UnavailableError(f"set HF_TOKEN to a token that may write to {self.repo_id}", option="repo_id")

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        results: Results,
        run: RunContext,
    ) -> None:
        """Upload the whole folder in one commit.

        Raises:
            OptionError: the token has no write access there.
            UnavailableError: there is no token, or the upload failed; the folder is unchanged.
        """
        if run.rehearsal:
            run.log.info("a rehearsal uploads nothing: %s would go to %s", folder.name, self.repo_id)
            return
        self.check(model, run)
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        # Its base classes: the error of whatever HTTP library this version of huggingface_hub uses, and OSError.
        transport: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
        api = HfApi(token=os.environ["HF_TOKEN"])
        try:
            url = api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            api.create_commit(
                self.repo_id,
                [CommitOperationAdd(str(file.relative_to(folder)), self._content(file)) for file in files],
                commit_message=f"{run.name}, by pretrain-toolkit",
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise OptionError(
                    f"the token in HF_TOKEN may not write to {self.repo_id} (status {status})", option="repo_id"
                ) from error
            raise UnavailableError(
                f"the Hub did not take {self.repo_id} (status {status}); the model is in {folder}", option="repo_id"
            ) from error
        except transport as error:
            raise UnavailableError(
                f"the Hub cannot be reached ({error}); the model is in {folder}", option="repo_id"
            ) from error
        run.log.info("%s uploaded to %s", folder.name, url)

    def _content(self, file: Path) -> Path | bytes:
        """What to upload for a file; the card is rewritten to load the model from the Hub."""
        if file.name != "README.md":
            return file
        return as_uploaded(file.read_text(encoding="utf-8"), self.repo_id).encode()
