"""The vectors that a verdict needs: from a store made elsewhere, from the cache, and the rest computed by M0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.compute import compute_shards
from trl_attribution.audit.own_responses import draw
from trl_attribution.errors import DataError, ModelError, SettingsError, StoreError, describe_difference
from trl_attribution.gate.materials import Materials
from trl_attribution.gate.rows.inventory import BadRow, Inventory, shown_rows
from trl_attribution.gate.vectors.cache import VectorCache
from trl_attribution.gate.vectors.elsewhere import holds_vectors, open_vectors
from trl_attribution.gate.vectors.remote import RemoteCache
from trl_attribution.pairs import EncodedPair, Pair, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.pairs.examples import questions_of
from trl_attribution.pairs.own_responses import FILE_NAME, OwnFile, made_digest
from trl_attribution.pairs.rows import Row
from trl_attribution.store import StoreSettings, VectorBlock, VectorStore
from trl_attribution.store.ids import first_ids
from trl_attribution.utils.arrays import Integers
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.compat import keeps_whole_prompts
from trl_attribution.utils.progress import OnProgress
from trl_attribution.utils.text import MOST_SHOWN, counted, printable, some_lines

SHARD_PAIRS = 512


class JointView:
    """Chosen pairs that lie in several stores, in the order asked for; reads from disk as it is asked.

    Raises:
        StoreError: a pair is in none of the stores.
    """

    def __init__(self, stores: Sequence[VectorStore], layers: tuple[int, ...], pair_ids: list[str]) -> None:
        self._stores = stores
        self.layers = layers
        self.hidden_size = stores[0].hidden_size
        self.pair_ids = pair_ids
        self._holder = np.full(len(pair_ids), len(stores) - 1)
        for number in reversed(range(len(stores) - 1)):
            self._holder[stores[number].holds(pair_ids)] = number

    def __len__(self) -> int:
        return len(self.pair_ids)

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[VectorBlock]:
        """All pairs in order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            ids, holder = self.pair_ids[start : start + size], self._holder[start : start + size]
            pair = torch.empty(len(ids), len(layers), self.hidden_size)
            context = torch.empty_like(pair)
            for number in np.unique(holder).tolist():
                rows = np.flatnonzero(holder == number)
                (found,) = self._stores[number].select([ids[row] for row in rows.tolist()]).blocks(layers, size)
                pair[torch.from_numpy(rows)], context[torch.from_numpy(rows)] = found.pair, found.context
            yield VectorBlock(start, pair, context)


@dataclass(frozen=True)
class Supply:
    """Where the vectors are; by default there are none."""

    stores: tuple[VectorStore, ...] = ()
    layers: tuple[int, ...] = ()
    computed: int = 0
    cached: int = 0
    """Of the store made elsewhere and of the cache."""
    reused: int = 0
    """Of the store made elsewhere alone."""
    notes: tuple[str, ...] = ()
    unusable: tuple[tuple[int, BadRow], ...] = ()
    """Pairs that no tokens can be made of: their position in the inventory, and what is wrong with their row."""

    def view(self, pair_ids: list[str]) -> JointView:
        """The vectors of pairs that are all there."""
        return JointView(self.stores, self.layers, pair_ids)

    def usable(self, positions: Integers) -> Integers:
        """Those of the pairs at ``positions`` that have vectors."""
        return np.setdiff1d(positions, np.array([position for position, _ in self.unusable], dtype=np.int64))


class Supplier:
    """Finds or computes the vectors of one gate run.

    Args:
        materials: the policy, and what decides the kind of vectors.
        trust_remote_code: run Python code that comes with the model.
        on_progress: see :data:`OnProgress`.
        vectors: where vectors were made elsewhere, in the place of what the policy says.
    """

    def __init__(
        self, materials: Materials, trust_remote_code: bool, on_progress: OnProgress, vectors: Path | None = None
    ) -> None:
        self._file = materials.file
        self._policy = materials.file.policy
        self._needed = materials
        self._trust_remote_code = trust_remote_code
        self._on_progress = on_progress
        self._vectors = vectors
        self._notes: tuple[str, ...] = ()
        self._own = ""

    def supply(self, inventory: Inventory, positions: Integers) -> Supply:
        """The vectors of the pairs at ``positions``.

        Raises:
            StoreError: there is no model and some are missing (they are named), or a store is broken.
            SettingsError: a store was made in another way, or more would have to be computed than the policy allows.
            ModelError, ProbeError: M0 cannot be loaded, or is not that of the probes.
            DataError: no tokens can be made of some pairs, and the policy does not let that pass.
        """
        ids = inventory.ids_at(positions)
        cache = self._cache()
        if inventory.lacks_own:
            self._own = self._own_digest()
        elsewhere = self._made_elsewhere()
        stores, missing = self._stored(ids, elsewhere, cache)
        reused = 0 if elsewhere is None else int(elsewhere.holds(ids).sum())
        if not missing:
            return Supply(tuple(stores), self._needed.layers, 0, len(ids), reused, self._notes)
        wanted = self._wanted_rows(inventory, positions, set(missing))
        self._check_computable(inventory, wanted)
        dtype = stores[-1].settings.compute_dtype if stores else None
        run = _Computation(self._auditor(dtype), cache, self._own)
        if inventory.lacks_own:
            self._answer(run, inventory, wanted)
        unusable = run.compute(inventory, wanted, lambda done: self._on_progress("vectors", done, len(wanted)))
        self._refuse_unusable(inventory, [row for _, row in unusable])
        computed = len(missing) - len(unusable)
        stores = [*([elsewhere] if elsewhere is not None else []), cache.store(run.settings)]
        cached = len(ids) - len(missing)
        return Supply(tuple(stores), self._needed.layers, computed, cached, reused, self._notes, tuple(unusable))

    def _answer(self, run: _Computation, inventory: Inventory, wanted: dict[int, int]) -> None:
        """Have M0 draw its own responses to the prompts of the ``wanted`` rows, and keep them beside the vectors."""
        if self._policy.own_responses.file is not None:
            inventory.reader.own = OwnFile(self._file.path(self._policy.own_responses.file))
            return
        asked = (question for _, pair in _rows(inventory, wanted) for question in questions_of(pair))
        path = self._file.path(self._policy.cache.folder) / FILE_NAME
        inventory.reader.own = draw(asked, run.model, self._policy.own_responses, path)

    def _own_digest(self) -> str:
        """What vectors are bound to whose other side are M0's own responses."""
        config = self._policy.own_responses
        if config.file is not None:
            return OwnFile(self._file.path(config.file)).digest
        return made_digest(config.made(self._needed.model_fingerprint))

    def stored(self, pair_ids: Sequence[str]) -> Supply:
        """The vectors of pairs of which only the ids are known.

        Raises:
            StoreError: some are nowhere, or a store is broken.
            SettingsError: the store that the policy names was made in another way.
        """
        stores, missing = self._stored(pair_ids, self._made_elsewhere(), self._cache())
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(pair_ids)} listed pairs have no vectors, in the cache or in `vectors`: "
                f"{first_ids(missing)}. Give the pairs themselves, as a dataset."
            )
        return Supply(tuple(stores), self._needed.layers, 0, len(pair_ids))

    def _stored(
        self, ids: Sequence[str], elsewhere: VectorStore | None, cache: VectorCache
    ) -> tuple[list[VectorStore], list[str]]:
        """The stores that hold some of the pairs, checked, and the pairs that none holds."""
        stores = [] if elsewhere is None else [elsewhere]
        missing = list(ids) if elsewhere is None else elsewhere.missing(ids)
        cached = cache.best(self._settings(elsewhere), missing) if missing else None
        if cached is not None:
            stores.append(cached)
            missing = cached.missing(missing)
        for store in stores:
            store.verify(ids)
        return stores, missing

    def _wanted_rows(self, inventory: Inventory, positions: Integers, missing: set[str]) -> dict[int, int]:
        """The row of each missing pair, and its position."""
        found = [place for place in positions.tolist() if inventory.pair_ids[place] in missing]
        return {int(inventory.rows[place]): place for place in found}

    def _check_computable(self, inventory: Inventory, wanted: dict[int, int]) -> None:
        count, most = len(wanted), self._policy.compute.max_pairs
        if self._policy.model is None:
            first = dict(list(wanted.items())[:MOST_SHOWN])
            shown = [f"{printable(row.location)}: pair {pair.pair_id}" for row, pair in _rows(inventory, first)]
            where = str(self._vectors or self._policy.vectors or "the cache")
            fix = (
                f"Compute them where M0 is (`trl-attribution audit M0 DATASET --vectors {printable(where)}`), "
                "or name `model` in the policy."
            )
            head = f"{count} of the pairs to be judged have no vectors in {printable(where)}, and there is no model:"
            raise StoreError("\n".join([head, *some_lines(shown, count), fix]))
        if most is not None and count > most:
            raise SettingsError(
                f"{count} pairs have no vectors in the cache, and compute.max_pairs is {most}. Has the cache been "
                "lost? Fill it where M0 runs fast, or raise the limit."
            )

    def _refuse_unusable(self, inventory: Inventory, unusable: Sequence[BadRow]) -> None:
        tolerated = self._policy.rules.hygiene.tolerated
        bad = [row for row in unusable if row.reason not in tolerated]
        if not bad or inventory.reader.reading.on_bad_row == "skip":
            return
        head = f"{inventory.reader.source.name}: {counted(len(bad), 'pair')} cannot be encoded."
        fix = (
            "Mend these rows, raise encoding.max_length, give the rule hygiene.long_prompts (it judges over-long "
            "prompts), or leave them out with `reading: {on_bad_row: skip}` in the policy."
        )
        raise DataError("\n".join([head, *shown_rows(bad), fix]))

    def _settings(self, elsewhere: VectorStore | None) -> StoreSettings:
        """What vectors of the cache have to be made with; ``compute_dtype`` is ``auto`` where any will do."""
        policy = self._policy
        dtype = policy.compute.dtype
        if dtype == "auto" and elsewhere is not None:
            dtype = elsewhere.settings.compute_dtype
        return StoreSettings(
            model_fingerprint=self._needed.model_fingerprint,
            layers=self._needed.layers,
            hidden_size=self._needed.hidden_size,
            vector_dtype=policy.compute.vector_dtype,
            compute_dtype=dtype,
            max_length=policy.encoding.max_length,
            truncation_mode=policy.encoding.truncation_mode,
            own_responses=self._own,
            whole_prompts=keeps_whole_prompts(),
        )

    def _made_elsewhere(self) -> VectorStore | None:
        """The vectors of an audit or a store that was named, once they are known to be of the right kind."""
        named, shown = self._vectors, f"--vectors {self._vectors}"
        if named is None and self._policy.vectors is not None:
            named, shown = self._file.path(self._policy.vectors), f"vectors: {self._policy.vectors}"
        if named is not None:
            store = open_vectors(named)
            difference = self._difference(store)
            if difference:
                raise SettingsError(
                    f"{printable(shown, 400)} was made with something else than the policy and its probes:\n"
                    f"{difference}\n"
                    "Make it again with the policy's model, layers and truncation, or change the policy."
                )
            return store
        folder = self._file.path(self._policy.cache.folder)
        if not holds_vectors(folder):
            return None
        store = open_vectors(folder)
        if self._difference(store):
            self._notes = (f"cache: the vectors of {printable(folder)} were made in another way, and are not used",)
            return None
        return store

    def _difference(self, store: VectorStore) -> str:
        """What keeps the vectors of ``store`` from being taken, a line a setting; empty where nothing does."""
        stored, asked = store.settings, self._settings(store)
        covered = set(asked.layers) <= set(stored.layers)
        asked = replace(asked, layers=stored.layers if covered else asked.layers, vector_dtype=stored.vector_dtype)
        return "" if asked == stored else describe_difference(stored.as_dict(), asked.as_dict())

    def _cache(self) -> VectorCache:
        options = self._policy.cache
        remote = None
        if options.remote is not None:
            remote = RemoteCache(options.remote if "://" in options.remote else str(self._file.path(options.remote)))
        return VectorCache(self._file.path(options.folder), remote, options.push)

    def _auditor(self, compute_dtype: str | None) -> DataAuditor:
        """M0, loaded and checked; vectors of one verdict are computed in one precision."""
        policy, compute = self._policy, self._policy.compute
        assert policy.model is not None  # checked by _check_computable
        config = replace(
            compute,
            layers=self._needed.layers,
            dtype=compute_dtype or compute.dtype,
            encoding=policy.encoding,
            score=policy.score,
            trust_remote_code=self._trust_remote_code,
        )
        auditor = DataAuditor(self._file.model(policy.model), probes=self._needed.probes.probes or None, config=config)
        found = auditor.model.fingerprint.digest
        if found != self._needed.model_fingerprint:
            raise ModelError(
                f"model: {printable(policy.model)} has the fingerprint {found}, but the baseline was recorded with "
                f"{self._needed.model_fingerprint}. Name the model that it was recorded with, or record it again."
            )
        return auditor


class _Computation:
    """M0 at work: missing pairs in, shards of the cache out."""

    def __init__(self, auditor: DataAuditor, cache: VectorCache, own_responses: str = "") -> None:
        self._auditor = auditor
        self._engine = auditor.new_engine()
        self._cache = cache
        self.settings = replace(auditor.store_settings(self._engine), own_responses=own_responses)
        self.model = auditor.model
        self._shards: list[Path] = []

    def compute(
        self, inventory: Inventory, wanted: dict[int, int], on_progress: Callable[[int], None]
    ) -> list[tuple[int, BadRow]]:
        """Compute the pairs of the ``wanted`` rows; returns those that no tokens can be made of."""
        self._cache.store(self.settings)
        unusable: list[tuple[int, BadRow]] = []
        shards = in_chunks(self._encoded(inventory, wanted, unusable), SHARD_PAIRS)
        with self._shared(), self._engine.in_step():
            compute_shards(self._engine, shards, self._keep, on_progress)
        return unusable

    def _encoded(
        self, inventory: Inventory, wanted: dict[int, int], unusable: list[tuple[int, BadRow]]
    ) -> Iterator[EncodedPair]:
        """The tokens of the ``wanted`` rows; those that have none are added to ``unusable``."""
        pairs = (pair for _, pair in _rows(inventory, wanted))
        for pair, encoded in encoded_pairs(pairs, self._auditor.model.encoder, self._auditor.config.encoding):
            if not isinstance(encoded, RowFault):
                yield encoded
                continue
            sentence = f"column '{encoded.field}' {printable(encoded.detail, 400)}"
            position = wanted[pair.row]
            examined = bool(inventory.examined[position])
            unusable.append((position, BadRow(pair.row, pair.location, encoded.reason, sentence, examined)))

    def _keep(self, pair_ids: list[str], pair: Tensor, context: Tensor) -> None:
        self._shards += self._cache.add(self.settings, pair_ids, pair, context)

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """What was computed goes to the shared place also where the rest fails, or somebody interrupts it."""
        try:
            yield
        finally:
            self._cache.share(self.settings, self._shards)


def _rows(inventory: Inventory, wanted: dict[int, int]) -> Iterator[tuple[Row, Pair]]:
    return inventory.reader.again(wanted, lambda row: inventory.pair_ids[wanted[row]])
