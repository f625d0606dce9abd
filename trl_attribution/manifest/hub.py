"""A cleaned dataset put on a hub, with its provenance on the card; nothing there is lost by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import SettingsError
from trl_attribution.manifest.card import Provenance, begun, file_card, section
from trl_attribution.manifest.files import files_of
from trl_attribution.pairs.rows import open_dataset
from trl_attribution.pairs.rows.opening import is_saved_dataset
from trl_attribution.pairs.rows.rows import DatasetRows
from trl_attribution.utils.card import CARD, read_card
from trl_attribution.utils.hub import HubRepository, Pushed
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.manifest.tally import ApplyReport

_SHARD_BYTES = 500_000_000
_OURS = (CARD, ".gitattributes")


@dataclass(frozen=True)
class HubTarget:
    """A dataset repository to write to, looked at before any work is done."""

    repository: HubRepository

    @classmethod
    def check(cls, repo_id: str, private: bool = True) -> HubTarget:
        """Find out whether ``repo_id`` can be written to; raises as :meth:`HubRepository.check` does."""
        return cls(HubRepository.check(repo_id, "dataset", "--push-to-hub", private))

    def push(self, output: Path, provenance: Provenance, report: ApplyReport) -> Pushed:
        """Upload what applying a manifest wrote to ``output``, in one commit.

        Files and folders of files go up as they are, a ``save_to_disk`` folder as Parquet, a split a file or more. The
        card on the hub stays, with the provenance added to it.

        Raises:
            SettingsError: the repository holds other files, which would be read together with the new ones.
            AttributionError: the hub cannot be reached, or refuses.
        """
        repository = self.repository
        with tempfile.TemporaryDirectory() as scratch:
            files = dict(_files(output, Path(scratch)))
            foreign = sorted(set(repository.there) - set(files) - set(_OURS))
            if foreign:
                raise SettingsError(
                    f"--push-to-hub: {repository.repo_id} holds other files ({printable(', '.join(foreign[:5]))}), "
                    "which would be read together with the cleaned ones. Choose a new name, or remove them first."
                )
            files[CARD] = self._card(output, Path(scratch), provenance, report)
            told = f"manifest sha256 {provenance.manifest.digest}"
            return repository.upload(files, "Cleaned with trl-attribution", told)

    def _card(self, output: Path, scratch: Path, provenance: Provenance, report: ApplyReport) -> Path:
        local = output / CARD if output.is_dir() else file_card(output)
        if CARD in self.repository.there:
            local = self.repository.file(CARD, scratch / "card")
        card = scratch / CARD
        section(provenance, report).write(card, read_card(local, begun(self.repository.repo_id.partition("/")[2])))
        return card


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
