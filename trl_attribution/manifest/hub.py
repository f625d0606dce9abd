"""A cleaned dataset put on a hub, with its provenance on the card; nothing there is lost by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.manifest.card import Provenance, begun, file_card, section
from trl_attribution.manifest.files import files_of
from trl_attribution.pairs.rows import open_dataset
from trl_attribution.pairs.rows.opening import is_saved_dataset
from trl_attribution.pairs.rows.rows import DatasetRows
from trl_attribution.utils.card import CARD, read_card
from trl_attribution.utils.compat import http_error
from trl_attribution.utils.text import is_hub_id, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from trl_attribution.manifest.tally import ApplyReport

_SHARD_BYTES = 500_000_000
_OURS = (CARD, ".gitattributes")


@dataclass(frozen=True)
class Pushed:
    """A dataset as it now is on a hub."""

    repo_id: str
    url: str
    private: bool
    files: tuple[str, ...]
    """Paths in the repository, the card included."""


@dataclass(frozen=True)
class HubTarget:
    """A dataset repository to write to, looked at before any work is done."""

    repo_id: str
    private: bool = True
    revision: str | None = None
    """The commit that was looked at; None where the repository does not exist yet."""
    there: tuple[str, ...] = ()
    """Files in the repository."""

    @classmethod
    def check(cls, repo_id: str, private: bool = True) -> HubTarget:
        """Find out whether ``repo_id`` can be written to.

        Raises:
            SettingsError: it is no ``owner/name``, or an existing repository is public where a private one is wanted.
            AttributionError: the hub cannot be reached, or refuses.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        if not is_hub_id(repo_id) or repo_id.count("/") != 1:
            raise SettingsError(f"--push-to-hub: '{printable(repo_id)}' is no dataset id; write it as owner/name")
        with _hub_faults(repo_id):
            try:
                info = _api().dataset_info(repo_id)
            except RepositoryNotFoundError:
                return cls(repo_id, private)
        if private and not info.private:
            raise SettingsError(
                f"--push-to-hub: {repo_id} exists and is public. Choose another name, or accept that everybody can "
                "read it with --public."
            )
        return cls(repo_id, bool(info.private), info.sha, tuple(one.rfilename for one in info.siblings or ()))

    def push(self, output: Path, provenance: Provenance, report: ApplyReport) -> Pushed:
        """Upload what applying a manifest wrote to ``output``, in one commit.

        Files and folders of files go up as they are, a ``save_to_disk`` folder as Parquet, a split a file or more. The
        card on the hub stays, with the provenance added to it.

        Raises:
            SettingsError: the repository holds other files, which would be read together with the new ones.
            AttributionError: the hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as scratch:
            files = dict(_files(output, Path(scratch)))
            foreign = sorted(set(self.there) - set(files) - set(_OURS))
            if foreign:
                raise SettingsError(
                    f"--push-to-hub: {self.repo_id} holds other files ({printable(', '.join(foreign[:5]))}), which "
                    "would be read together with the cleaned ones. Choose a new name, or remove them first."
                )
            with _hub_faults(self.repo_id):
                files[CARD] = self._card(output, Path(scratch), provenance, report)
                return self._upload(files, provenance)

    def _card(self, output: Path, scratch: Path, provenance: Provenance, report: ApplyReport) -> Path:
        local = output / CARD if output.is_dir() else file_card(output)
        if CARD in self.there:
            local = Path(_api().hf_hub_download(self.repo_id, CARD, repo_type="dataset", local_dir=scratch / "card"))
        card = scratch / CARD
        section(provenance, report).write(card, read_card(local, begun(self.repo_id.partition("/")[2])))
        return card

    def _upload(self, files: Mapping[str, Path], provenance: Provenance) -> Pushed:
        from huggingface_hub import CommitOperationAdd

        api = _api()
        if self.revision is None:
            api.create_repo(self.repo_id, repo_type="dataset", private=self.private)
            # Before anything is in it: a hub may make repositories public whatever is asked.
            if self.private and not api.dataset_info(self.repo_id).private:
                raise AttributionError(
                    f"--push-to-hub: {self.repo_id} was made, but is public although a private one was asked for. "
                    "Nothing was uploaded; make it private there, or accept that with --public."
                )
        commit = api.create_commit(
            self.repo_id,
            [CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message="Cleaned with trl-attribution",
            commit_description=f"manifest sha256 {provenance.manifest.digest}",
            repo_type="dataset",
            parent_commit=self.revision,
        )
        return Pushed(self.repo_id, str(commit.repo_url), self.private, tuple(sorted(files)))


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="trl-attribution")


def _files(output: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Path in the repository and local file of everything to upload but the card."""
    if output.is_file():
        yield output.name, output
        return
    opened = open_dataset(output, _any_split(output)) if is_saved_dataset(output) else None
    if opened is None or not isinstance(opened.source, DatasetRows):
        for file in files_of(output).files:
            if file != Path(CARD):
                yield file.as_posix(), output / file
        return
    splits = {opened.split or "train": opened.source, **opened.others}
    for split, rows in splits.items():
        yield from _shards(split, rows.dataset, scratch)


def _any_split(output: Path) -> str | None:
    """A split to open a dictionary of several by; all are read."""
    if not (output / "dataset_dict.json").exists():
        return None
    from datasets import load_from_disk

    return str(next(iter(load_from_disk(str(output)))))


def _shards(split: str, dataset: Any, scratch: Path) -> Iterator[tuple[str, Path]]:
    count = max(1, -(-dataset.data.nbytes // _SHARD_BYTES))
    for number in range(count):
        name = f"{split}-{number:05d}-of-{count:05d}.parquet"
        dataset.shard(count, number, contiguous=True).to_parquet(str(scratch / name))
        yield f"data/{name}", scratch / name


@contextmanager
def _hub_faults(repo_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, http_error()) as error:
        raise AttributionError(
            f"--push-to-hub: {repo_id} cannot be written: {printable(error, 400)}. Log in with `hf auth login` or set "
            "HF_TOKEN, and check the name and the connection."
        ) from error
