"""A language model behind an OpenAI-compatible endpoint that reads both responses of every pair."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.behaviors import EndpointJudge, Prompt
from trl_attribution.errors import AttributionError, JudgeError, SettingsError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.pairs import Pair, whole_text
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.format_version import refuse_newer
from trl_attribution.utils.progress import OnProgress, silent

_CHUNK = 64
VERDICTS_FORMAT = "trl-attribution verdicts"
VERDICTS_VERSION = 1


@dataclass(frozen=True)
class EndpointRanking:
    """1 where the judge sees the behavior in the chosen response alone, -1 in the rejected one alone, else 0.

    Verdicts are appended to a file as they come, so that what was paid for outlives a failure.
    """

    judge: EndpointJudge
    verdicts: Path | None = None
    """Where verdicts are kept; without it they live as long as the judge."""

    @property
    def name(self) -> str:
        """The judge's rule."""
        return self.judge.rule

    @property
    def settings(self) -> Mapping[str, Any]:
        """The service's address, model, question and parameters; not the key."""
        return {"baseline": self.judge.rule, "parameters": dict(self.judge.config.parameters)}

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Ask about every different response.

        Raises:
            JudgeError: the budget does not suffice, or a response could not be judged; verdicts reached are kept.
            SettingsError: the file of verdicts was made with another judge.
        """
        start, before = time.perf_counter(), self.judge.calls
        kept = VerdictFile(self.verdicts, self.settings) if self.verdicts is not None else None
        known = kept.load() if kept is not None else {}
        reused = len(known)
        self._check_budget(pairs, known)
        scores: dict[str, float] = {}
        for chunk in in_chunks(pairs, _CHUNK):
            asked = [one for pair in chunk for one in _both(pair)]
            missing = list({_key(*one): one for one in asked if _key(*one) not in known}.values())
            self._ask(missing, known, kept)
            for pair in chunk:
                chosen, rejected = (known[_key(*one)] for one in _both(pair))
                scores[pair.pair_id] = float(chosen) - float(rejected)
            on_progress("judge", len(scores), pairs.count)
        cost = Cost(time.perf_counter() - start, calls=self.judge.calls - before)
        return BaselineScores(self.name, scores, cost, _notes(scores, reused))

    def _check_budget(self, pairs: PairSet, known: Mapping[str, bool]) -> None:
        needed = len({_key(*one) for pair in pairs for one in _both(pair)} - known.keys())
        left = self.judge.config.max_calls - self.judge.calls
        if needed > left:
            raise SettingsError(
                f"baseline {self.name}: {needed:,} responses wait for a verdict, one call each at least, but the "
                f"budget is {left:,} calls. Raise --judge-calls."
            )

    def _ask(self, missing: Sequence[tuple[Prompt, str]], known: dict[str, bool], kept: VerdictFile | None) -> None:
        """Add the verdicts on ``missing`` to ``known`` and the file; those reached before a failure too."""
        if not missing:
            return
        try:
            verdicts: Sequence[bool | None] = self.judge.judge_all(missing)
        except JudgeError as error:
            self._keep(missing, error.verdicts, known, kept)
            if kept is None:
                raise
            raise JudgeError(
                f"{error} {len(known):,} verdicts are kept in {kept.path}: the same command goes on from there.",
                error.verdicts,
            ) from error
        self._keep(missing, verdicts, known, kept)

    def _keep(
        self,
        asked: Sequence[tuple[Prompt, str]],
        verdicts: Sequence[bool | None],
        known: dict[str, bool],
        kept: VerdictFile | None,
    ) -> None:
        found = {_key(*one): verdict for one, verdict in zip(asked, verdicts, strict=False) if verdict is not None}
        known.update(found)
        if kept is not None:
            kept.append(found)


class VerdictFile:
    """Verdicts of one judge, a JSON line each; only ever appended to, so a torn last line is all a kill can leave."""

    def __init__(self, path: Path, judge: Mapping[str, Any]) -> None:
        self.path = path
        self._header = {"format": VERDICTS_FORMAT, "version": VERDICTS_VERSION, "judge": dict(judge)}
        self._first = json.dumps(self._header) + "\n"

    def load(self) -> dict[str, bool]:
        """Verdicts by the digest of prompt and response; none where there is no file yet.

        Raises:
            SettingsError: another judge wrote it, or a newer version.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {self.path}: {error}. Remove it to start anew.") from error
        parsed = [one for one in map(_parsed, lines) if one is not None]
        # A kill may have left less than the header: then there are no verdicts yet.
        if not lines or (len(lines) == 1 and self._first.startswith(lines[0])):
            return {}
        if parsed[:1] != [self._header]:
            refuse_newer(parsed[0].get("version") if parsed else None, VERDICTS_VERSION, self.path, SettingsError)
            raise SettingsError(f"{self.path} is of another judge. Give another folder, or remove it to start anew.")
        return {
            one["response"]: one["verdict"]
            for one in parsed[1:]
            if isinstance(one.get("response"), str) and isinstance(one.get("verdict"), bool)
        }

    def append(self, verdicts: Mapping[str, bool]) -> None:
        """Write ``verdicts`` behind what is there.

        Raises:
            AttributionError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as handle:
                size = handle.seek(0, os.SEEK_END)
                if size < len(self._first):
                    handle.truncate(0)
                    handle.write(self._first.encode("ascii"))
                else:
                    handle.seek(size - 1)
                    handle.write(b"" if handle.read() == b"\n" else b"\n")
                lines = ({"response": key, "verdict": verdict} for key, verdict in verdicts.items())
                handle.write("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))
        except OSError as error:
            raise AttributionError(f"cannot write {self.path}: {error.strerror or error}") from error


def _both(pair: Pair) -> Iterator[tuple[Prompt, str]]:
    yield pair.prompt, whole_text(pair.chosen)
    yield pair.prompt, whole_text(pair.rejected)


def _key(prompt: Prompt, response: str) -> str:
    return hashlib.sha256(json.dumps([prompt, response], sort_keys=True).encode()).hexdigest()[:32]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None  # torn by a kill
    return value if isinstance(value, dict) else None


def _notes(scores: Mapping[str, float], reused: int) -> tuple[str, ...]:
    values = list(scores.values())
    note = (
        f"behavior seen in the chosen response alone: {values.count(1.0):,} pairs, in the rejected one alone: "
        f"{values.count(-1.0):,}, in both or none: {values.count(0.0):,}"
    )
    return (note, f"{reused:,} verdicts were there from an earlier run") if reused else (note,)
