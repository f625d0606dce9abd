"""A repository on a hub that files are written to: looked at before any work is done, and never made public unasked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.utils.compat import http_error
from trl_attribution.utils.text import is_hub_id, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoType = Literal["dataset", "model"]


@dataclass(frozen=True)
class Pushed:
    """What is now on a hub."""

    repo_id: str
    url: str
    private: bool
    files: tuple[str, ...]
    """Paths in the repository that were written, the card included."""


@dataclass(frozen=True)
class HubRepository:
    """A repository to write to."""

    repo_id: str
    kind: RepoType
    asked: str
    """What asked for it, such as ``--push-to-hub``: messages begin with it."""
    private: bool = True
    revision: str | None = None
    """The commit that was looked at; None where the repository does not exist yet."""
    there: tuple[str, ...] = ()
    """Files in the repository."""

    @classmethod
    def check(cls, repo_id: str, kind: RepoType, asked: str, private: bool = True) -> HubRepository:
        """Find out whether ``repo_id`` can be written to.

        Raises:
            SettingsError: it is no ``owner/name``, or an existing repository is public where a private one is wanted.
            AttributionError: the hub cannot be reached, or refuses.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        if not is_hub_id(repo_id) or repo_id.count("/") != 1:
            raise SettingsError(f"{asked}: '{printable(repo_id)}' is no {kind} id; write it as owner/name")
        with hub_faults(asked, repo_id):
            try:
                info = hub_api().repo_info(repo_id, repo_type=kind)
            except RepositoryNotFoundError:
                return cls(repo_id, kind, asked, private)
        if private and not info.private:
            raise SettingsError(
                f"{asked}: {repo_id} exists and is public. Choose another name, or accept that everybody can "
                "read it with --public."
            )
        files = tuple(one.rfilename for one in getattr(info, "siblings", None) or ())
        return cls(repo_id, kind, asked, bool(info.private), info.sha, files)

    def file(self, name: str, folder: Path) -> Path:
        """A file that is ``there``, fetched into ``folder``."""
        api = hub_api()
        with hub_faults(self.asked, self.repo_id):
            return Path(api.hf_hub_download(self.repo_id, name, repo_type=self.kind, local_dir=folder))

    def upload(self, files: Mapping[str, Path], message: str, description: str) -> Pushed:
        """Write ``files``, by their paths in the repository, in one commit.

        Raises:
            AttributionError: the hub cannot be reached, or refuses, or made a public repository unasked.
        """
        from huggingface_hub import CommitOperationAdd

        with hub_faults(self.asked, self.repo_id):
            api = hub_api()
            if self.revision is None:
                api.create_repo(self.repo_id, repo_type=self.kind, private=self.private)
                # Before anything is in it: a hub may make repositories public whatever is asked.
                if self.private and not api.repo_info(self.repo_id, repo_type=self.kind).private:
                    raise AttributionError(
                        f"{self.asked}: {self.repo_id} was made, but is public although a private one was asked for. "
                        "Nothing was uploaded; make it private there, or accept that with --public."
                    )
            commit = api.create_commit(
                self.repo_id,
                [CommitOperationAdd(name, str(path)) for name, path in files.items()],
                commit_message=message,
                commit_description=description,
                repo_type=self.kind,
                parent_commit=self.revision,
            )
        return Pushed(self.repo_id, str(commit.repo_url), self.private, tuple(sorted(files)))


def hub_api() -> HfApi:
    """The hub, as the user is logged in."""
    from huggingface_hub import HfApi

    return HfApi(library_name="trl-attribution")


@contextmanager
def hub_faults(asked: str, repo_id: str, done: str = "written") -> Iterator[None]:
    """Make one message of what a hub refuses, or of one that cannot be reached."""
    try:
        yield
    except (OSError, ValueError, http_error()) as error:
        said = printable(error, 400).rstrip(".")
        raise AttributionError(
            f"{asked}: {repo_id} cannot be {done}: {said}. Log in with `hf auth login` or set HF_TOKEN, and check the "
            "name and the connection."
        ) from error
