"""The exported folder on the Hub."""

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

    The token is never an option: recipes are shared and kept.
    """

    repo_id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository to upload to, OWNER/NAME; made if it does not exist."""
    private: bool = True
    """Whether a repository that is made now can be seen by its owner alone. An existing one stays as it is."""

    def export_bytes(self, *, weights: int, saved: int) -> int:
        """Files are sent as they lie on the disk."""
        return 0

    def check(self, model: PreTrainedModel, run: RunContext) -> None:
        """Refuse to train for an upload that nobody has a token for."""
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
        """Upload all of the folder in one commit.

        Raises:
            OptionError: the token may not write there.
            UnavailableError: there is no token, or the Hub does not take the upload; the folder is as it was.
        """
        if run.rehearsal:
            run.log.info("a rehearsal uploads nothing: %s would go to %s", folder.name, self.repo_id)
            return
        self.check(model, run)
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        # Its bases: whatever HTTP library this version of the Hub's uses, and OSError.
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
        """What is uploaded of a file: the card says where the model is now."""
        if file.name != "README.md":
            return file
        return as_uploaded(file.read_text(encoding="utf-8"), self.repo_id).encode()
