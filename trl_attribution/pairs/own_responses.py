"""M0's own responses by prompt, in a file: drawn once and kept, or made elsewhere and given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trl_attribution.errors import AttributionError, DataError, SettingsError, describe_difference
from trl_attribution.pairs.examples import Question
from trl_attribution.pairs.identity import prompt_key
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.paths import is_there
from trl_attribution.utils.text import json_fault

FORMAT: Final = "trl-attribution own responses"
VERSION: Final = 1
FILE_NAME: Final = "own-responses.jsonl"
"""Where an audit folder and a gate's cache keep them."""
_FIX = 'Each line is an object such as {"prompt": ..., "responses": ["...", "..."]}.'


@dataclass(frozen=True)
class OwnConfig:
    """M0's own responses: the other side of KTO rows with one label, and of SFT rows."""

    file: str | None = field(default=None, metadata={"option": "own_responses"})
    """M0's own responses, drawn before: JSONL with prompt and responses; None draws them."""
    n: int = field(default=4, metadata={"option": "own_samples"})
    """How many of M0's own responses to draw for a prompt whose example has one side only."""
    max_new_tokens: int = field(default=256, metadata={"option": "own_max_new_tokens"})
    """Tokens of each at most."""
    seed: int = field(default=0, metadata={"option": "own_seed"})
    """Of drawing them."""

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"own responses: {name} must be at least 1, not {getattr(self, name)}")

    def made(self, model_fingerprint: str) -> dict[str, Any]:
        """What decides on the responses that are drawn from the model with this fingerprint."""
        how = {"n": self.n, "max_new_tokens": self.max_new_tokens, "seed": self.seed}
        return {"model_fingerprint": model_fingerprint, **how}


class OwnFile:
    """A file of M0's own responses; memory holds where each prompt's line begins, not the texts.

    Args:
        path: the file.
        made: what it was drawn with, where it is to be made or gone on with; None for a file that is only read.

    Raises:
        DataError: a line is none of responses.
        SettingsError: it was drawn with something else.
    """

    def __init__(self, path: Path, made: dict[str, Any] | None = None) -> None:
        self.path = path
        self._places: dict[bytes, list[int]] = {}
        self._goes_on = made is not None
        self.made = made
        """What it was drawn with; None where nobody said."""
        if made is None or path.exists():
            self._read()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def digest(self) -> str:
        """What vectors are bound to: how the responses were drawn, or where nobody said, what stands in the file."""
        if self.made is not None:
            return made_digest(self.made)
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    def of(self, key: bytes) -> Sequence[str] | None:
        """The responses to the prompt with this key, None where there are none."""
        places = self._places.get(key)
        if places is None:
            return None
        with self.path.open("rb") as handle:
            found: list[str] = []
            for place in places:
                handle.seek(place)
                found += _texts(json.loads(handle.readline()), str(self.path))
        return found

    def add(self, drawn: Sequence[tuple[Question, Sequence[str]]]) -> None:
        """Append responses, so that a killed run has them.

        Raises:
            AttributionError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                if handle.tell() == 0:
                    handle.write(_line({"format": FORMAT, "version": VERSION, "made": self.made}))
                for question, texts in drawn:
                    self._places[question.key] = [handle.tell()]
                    handle.write(_line({**question.as_json(), "responses": list(texts)}))
        except OSError as error:
            raise AttributionError(f"cannot write {self.path}: {error.strerror or error}. Free some space.") from error

    def _read(self) -> None:
        for place, number, line in self._lines():
            where = f"{self.path}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: broken JSON ({json_fault(error)}). {_FIX}") from error
            if number == 1 and isinstance(values, dict) and values.get("format") == FORMAT:
                self._check_header(values, where)
                continue
            if not isinstance(values, dict) or "prompt" not in values:
                raise DataError(f"{where}: has no prompt. {_FIX}")
            _texts(values, where)
            key = prompt_key(values["prompt"], values.get("tools") or None, values.get("chat_template_kwargs") or None)
            self._places.setdefault(key, []).append(place)

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Place, number and content of each line; where we go on, a last one that a kill cut short is taken off."""
        try:
            with self.path.open("rb") as handle:
                place = 0
                for number, line in enumerate(handle, start=1):
                    if self._goes_on and not line.endswith(b"\n"):
                        break
                    if line.strip():
                        yield place, number, line
                    place += len(line)
            if self._goes_on and place < self.path.stat().st_size:
                with self.path.open("r+b") as handle:
                    handle.truncate(place)
        except OSError as error:
            raise DataError(f"own responses: cannot read {self.path}: {error.strerror or error}") from error

    def _check_header(self, values: dict[str, Any], where: str) -> None:
        check_format_version(values.get("version"), VERSION, where, DataError)
        stated = values.get("made")
        if not isinstance(stated, dict):
            raise DataError(f"{where}: the header does not say what the responses were drawn with. Draw them again.")
        if self.made is not None and stated != self.made:
            raise SettingsError(
                f"{self.path} was drawn with something else:\n{describe_difference(stated, self.made)}\n"
                f"Give the same settings, read it as it is (--own-responses {self.path}), or choose another folder."
            )
        self.made = stated


def own_at_hand(folder: Path, given: str | None, digest: str) -> OwnFile | None:
    """The responses with this ``digest``, in the audit folder or the file ``given``; None where they are not there.

    Raises:
        DataError: a line of such a file is none of responses.
    """
    for path in (folder / FILE_NAME, *([] if given is None else [Path(given)])) if digest else ():
        if is_there(path) and (own := OwnFile(path)).digest == digest:
            return own
    return None


def made_digest(made: dict[str, Any]) -> str:
    """What vectors are bound to whose other side was drawn with ``made``."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _texts(values: dict[str, Any], where: str) -> list[str]:
    found = values.get("responses", values.get("response", values.get("completion")))
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: has no responses that are text. {_FIX}")
    return texts


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()
