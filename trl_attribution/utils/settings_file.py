"""Reads a YAML file of settings: every fault is named with its file, line and key, and what was expected there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, ValidationInfo

from trl_attribution.errors import SettingsError
from trl_attribution.utils.format_version import refuse_newer
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import MOST_SHOWN, counted, printable, some_lines

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_BYTES = 16 * 2**20
_DEEPEST = 20

Model = TypeVar("Model", bound=BaseModel)
Keys = tuple[str | int, ...]


def beside_settings(name: str, info: ValidationInfo) -> str:
    """Validates what may be a path: one that lies beside the settings file is made absolute, a Hub id stays one."""
    beside = info.context / local_path(name) if name and isinstance(info.context, Path) else None
    return str(beside) if beside is not None and beside.exists() else name


@dataclass(frozen=True)
class SettingsKind(Generic[Model]):
    """What a file of settings has to be."""

    name: str
    """What messages call it, such as ``policy``."""
    model: type[Model]
    newest: int
    """The newest version that is read."""
    hint: str
    """How to come by such a file, a sentence."""
    nullable: frozenset[Keys] = frozenset()
    """Keys that may have no value, and all keys below them."""

    def load(self, path: str | Path) -> Model:
        """Read and check a file.

        Raises:
            SettingsError: there is no such file, it is no YAML, or not of this kind; the message names the file, the
                line, the key and what was expected.
        """
        place = printable(path, 1000)
        try:
            with Path(path).open("rb") as handle:
                raw = handle.read(_MOST_BYTES + 1)
            text = raw.decode("utf-8-sig")
        except OSError as error:
            raise SettingsError(
                f"cannot read the {self.name} {place}: {error.strerror or error}. {self.hint}"
            ) from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{place}: not UTF-8 (byte {error.start}). Save the {self.name} as UTF-8.") from error
        if len(raw) > _MOST_BYTES:
            raise SettingsError(f"{place}: larger than {_MOST_BYTES // 2**20} MiB, which no {self.name} is")
        return self.parse(text, place, Path(path).absolute().parent)

    def parse(self, text: str, place: str, folder: Path | None = None) -> Model:
        """The settings in the text of a file in ``folder``; ``place`` is what messages call the file.

        Raises:
            SettingsError: as for :meth:`load`.
        """
        values, lines = self._parsed(text, place)
        if not isinstance(values, Mapping):
            what = "nothing" if values is None else f"a {type(values).__name__}"
            raise SettingsError(f"{place}: holds {what}, not a mapping of settings. {self.hint}")
        refuse_newer(values.get("version"), self.newest, place, SettingsError)
        try:
            return self.model.model_validate(values, context=folder)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
        shown = [self._sentence(fault, place, lines) for fault in faults[:MOST_SHOWN]]
        told = [f"the {self.name} {place} has {counted(len(faults), 'fault')}:", *some_lines(shown, len(faults))]
        raise SettingsError("\n".join(told))

    def _parsed(self, text: str, place: str) -> tuple[Any, dict[Keys, int]]:
        """The values of a YAML document, and the line of each, by keys."""
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is None:
                return None, {}
            lines = dict(self._walk(node, place))
            return yaml.load(text, Loader=_Loader), lines  # noqa: S506  # a SafeLoader
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{place}:{mark.line + 1}" if mark is not None else place
            raise SettingsError(f"{where}: broken YAML ({printable(error.problem or error)})") from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise SettingsError(f"{place}: broken YAML ({printable(error)})") from error
        except RecursionError as error:
            raise SettingsError(f"{place}: nested too deeply for a {self.name}") from error

    def _walk(self, root: yaml.Node, place: str) -> Iterator[tuple[Keys, int]]:
        """The line of every value; what YAML would pass over in silence is refused.

        An alias can make a document without end out of a few lines: depth is limited, and nodes are not walked twice.
        """
        waiting: list[tuple[yaml.Node, Keys]] = [(root, ())]
        seen: set[int] = set()
        while waiting:
            node, keys = waiting.pop()
            line = node.start_mark.line + 1
            yield keys, line
            if len(keys) > _DEEPEST:
                raise SettingsError(f"{place}:{line}: nested too deeply for a {self.name}")
            if _is_null(node) and keys and not self._may_be_null(keys):
                raise SettingsError(f"{place}:{line}: {_spoken(keys)} has no value: give one, or leave the key out")
            if id(node) in seen and not isinstance(node, yaml.ScalarNode):
                raise SettingsError(f"{place}:{line}: {_spoken(keys)} is an alias of a whole section: write it out")
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting += [(item, (*keys, number)) for number, item in enumerate(node.value)]
            elif isinstance(node, yaml.MappingNode):
                waiting += _entries(node, keys, place)

    def _may_be_null(self, keys: Keys) -> bool:
        return any(keys[:end] in self.nullable for end in range(1, len(keys) + 1))

    def _sentence(self, fault: ErrorDetails, place: str, lines: Mapping[Keys, int]) -> str:
        keys: Keys = tuple(fault["loc"])
        line = next((lines[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in lines), None)
        where = f"{place}:{line}" if line is not None else place
        return f"{where}: {_spoken(keys) or f'the {self.name}'}: {self._wanted(fault, keys)}"

    def _wanted(self, fault: ErrorDetails, keys: Keys) -> str:
        kind, given = fault["type"], fault["input"]
        if kind == "missing":
            return "is missing"
        if kind == "extra_forbidden":
            choices = _fields_at(self.model, keys[:-1])
            return "is no such key" + (f"; choose from {', '.join(choices)}" if choices else "")
        message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
        if kind == "value_error" or isinstance(given, Mapping | list):
            return message
        # The text of a container of aliases could be endless; that of a number can be long.
        if isinstance(given, int):
            return f"{message}, not {_number(given)}"
        return (
            f"{message}, not {printable(given, 60) if isinstance(given, str | float) else f'a {type(given).__name__}'}"
        )


class _Loader(yaml.SafeLoader):
    """Leaves dates as text: the model checks them where their key and line are known."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as its base class has them
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _entries(node: yaml.MappingNode, keys: Keys, place: str) -> Iterator[tuple[yaml.Node, Keys]]:
    known: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise SettingsError(f"{place}:{line}: {_spoken(keys) or 'the file'} has a key that is no plain word")
        if key.value in known:
            raise SettingsError(f"{place}:{line}: {_spoken((*keys, key.value))} is given twice: leave one of them")
        known.add(key.value)
        yield value, (*keys, key.value)


def _number(value: int) -> str:
    """Python does not print a number of thousands of digits."""
    return str(value) if abs(value) < 10**30 else "so long a number"


def _spoken(keys: Keys) -> str:
    return printable(".".join(str(key) for key in keys), 120)


def _fields_at(model: type[BaseModel], keys: Keys) -> list[str]:
    """The keys that belong at a place of the settings."""
    schema = model.model_json_schema()
    places = _choices(schema, schema)
    for key in keys:
        places = [each for place in places for each in _choices(_below(place, key), schema)]
    return list(dict.fromkeys(name for place in places for name in place.get("properties", ())))


def _below(place: Mapping[str, Any], key: str | int) -> Mapping[str, Any]:
    """What the schema of a place says of one key in it."""
    if isinstance(key, int):
        found = place.get("items", {})
    else:
        found = place.get("properties", {}).get(key, place.get("additionalProperties", {}))
    return found if isinstance(found, Mapping) else {}


def _choices(place: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A part of a schema, or those that it leaves the choice of, its references followed."""
    if "$ref" in place:
        return _choices(schema["$defs"][place["$ref"].rpartition("/")[2]], schema)
    return [each for choice in place["anyOf"] for each in _choices(choice, schema)] if "anyOf" in place else [place]
