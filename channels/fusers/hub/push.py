"""Upload a fuser to the Hugging Face hub: its two files in our format, and a model card."""

import tempfile
from pathlib import Path
from typing import Any

from cachegraph.errors import CachegraphError, ConfigError, FuserError

from ..files.verify import open_fuser
from ..files.weights import save_fuser
from .hub_name import HubFuser, parse_hub_fuser
from .readme import model_card

__all__ = ["push_fuser"]

PUSH_FORM = "hub:ORGANISATION/NAME, then /FOLDER where needed"


def push_fuser(source: Path, target: str, *, private: bool = False, quiet: bool = False) -> HubFuser:
    """Verify the fuser in `source` and upload it in one commit; returns its name on the hub, pinned to that commit.

    Creates the repository if needed; `quiet` hides the hub client's progress bars. Raises FuserError for a damaged
    fuser or an invalid name, ConfigError without token or network, or if the hub refuses.
    """
    wanted = parse_hub_fuser(target)
    if wanted is None or wanted.revision is not None:
        raise FuserError(f"{target!r} does not name a fuser's place on the hub; write {PUSH_FORM}")
    fuser = open_fuser(source)
    with tempfile.TemporaryDirectory(prefix="cachegraph-push-") as room:
        folder = Path(room) / "fuser"
        card = save_fuser(fuser, folder)
        readme = model_card(card, target, fuser.parameter_count)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        try:
            return wanted._replace(revision=_upload(folder, wanted, private, quiet))
        except CachegraphError:
            raise
        # The hub's client raises errors of the HTTP library it was built on; convert each to our messages.
        except Exception as error:
            raise _explain(wanted, error) from error


def _upload(folder: Path, wanted: HubFuser, private: bool, quiet: bool) -> str:
    """Upload the folder; returns the commit."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not get_token():
        raise ConfigError(
            f"a push to {wanted.repo!r} needs a token that may write; log in with: hf auth login, or set HF_TOKEN"
        )
    if quiet:
        disable_progress_bars()
    api = HfApi(library_name="cachegraph")
    api.create_repo(wanted.repo, private=private or None, exist_ok=True)  # None: the organisation's default
    if private and not api.model_info(wanted.repo).private:
        raise FuserError(
            f"the hub repository {wanted.repo!r} is there already and public, which --private does not change; "
            "make it private in its settings on the hub, or choose another"
        )
    commit = api.upload_folder(
        repo_id=wanted.repo,
        folder_path=folder,
        path_in_repo=wanted.folder or None,
        commit_message="Upload a cachegraph fuser",
    )
    return commit.oid


def _explain(wanted: HubFuser, error: Exception) -> CachegraphError:
    from huggingface_hub import errors

    repo = f"the hub repository {wanted.repo!r}"
    match error:
        case errors.OfflineModeIsEnabled():
            return ConfigError(f"can't push to {repo}: HF_HUB_OFFLINE forbids it; unset it to push")
        case errors.HFValidationError():
            return FuserError(f"{wanted.repo!r} is not a valid hub id: {error}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ConfigError(f"the hub doesn't know your token; log in again with: hf auth login ({repo} got nothing)")
    if status in (403, 404):
        return ConfigError(
            f"your token may not write to {repo}; check its name, and that the token has write access to "
            f"{wanted.repo.split('/')[0]!r} (https://huggingface.co/settings/tokens)"
        )
    if status is not None:
        return ConfigError(f"the hub refuses the push to {repo} ({_reason(error)}); correct that, or try again later")
    return ConfigError(f"can't push to {repo} ({_reason(error)}); check the network and the proxy, then try again")


def _reason(error: Any) -> str:
    said = str(getattr(error, "server_message", None) or error).strip().splitlines()
    return said[0] if said else repr(error)
