"""Reads a policy from YAML: every fault is named with its file, line and key, and what was expected there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trl_attribution.errors import SettingsError
from trl_attribution.gate.policy import POLICY_VERSION, Policy
from trl_attribution.text import printable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_BYTES = 16 * 2**20
_DEEPEST = 20
_SHOWN = 10
# Where nothing is a value of its own.
_NULLABLE = frozenset({("encoding", "max_length")})

_Keys = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Leaves dates as text: the policy checks them where their key and line are known."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as its base class has them
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class PolicyFile:
    """A policy, and the folder that its paths start from."""

    policy: Policy
    folder: Path

    def path(self, name: str) -> Path:
        """A path that the policy names; relative ones start from the policy's folder."""
        return self.folder / Path(name).expanduser()

    def model(self, name: str) -> str:
        """A model that the policy names: what lies beside the policy, else as it is (a Hub id)."""
        try:
            beside = self.path(name)
            return str(beside) if beside.exists() else name
        except (OSError, RuntimeError, ValueError):  # too long for a path, or no home folder: no file of ours
            return name


def load_policy(path: str | Path) -> PolicyFile:
    """Read and check a policy.

    Raises:
        SettingsError: there is no such file, it is no YAML, or what it says is no policy; the message names the file,
            the line, the key and what was expected.
    """
    file = Path(path)
    try:
        with file.open("rb") as handle:
            raw = handle.read(_MOST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(
            f"cannot read the policy {path}: {error.strerror or error}. `trl-attribution gate init` writes one."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 (byte {error.start}). Save the policy as UTF-8.") from error
    if len(raw) > _MOST_BYTES:
        raise SettingsError(f"{path}: larger than {_MOST_BYTES // 2**20} MiB, which no policy is")
    return PolicyFile(parse_policy(text, str(path)), file.parent)


def parse_policy(text: str, name: str = "the policy") -> Policy:
    """A policy from the text of its file; ``name`` is what messages call it.

    Raises:
        SettingsError: as for :func:`load_policy`.
    """
    values, lines = _parsed(text, name)
    if not isinstance(values, Mapping):
        what = "nothing" if values is None else f"a {type(values).__name__}"
        raise SettingsError(f"{name}: holds {what}, not a mapping of settings. `trl-attribution gate init` writes one.")
    version = values.get("version")
    if isinstance(version, int) and version > POLICY_VERSION:
        raise SettingsError(
            f"{name}: version: policy format version {_number(version)}; this trl-attribution reads up to "
            f"{POLICY_VERSION}. Install a newer trl-attribution to use it."
        )
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        shown = [_sentence(fault, name, lines) for fault in faults[:_SHOWN]]
        more = [f"  and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise SettingsError("\n".join([f"the policy {name} has {count}:", *shown, *more])) from None


def _parsed(text: str, name: str) -> tuple[Any, dict[_Keys, int]]:
    """The values of a YAML document, and the line of each, by keys."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None, {}
        lines = dict(_walk(node, (), name))
        return yaml.load(text, Loader=_Loader), lines  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark is not None else name
        raise SettingsError(f"{place}: broken YAML ({printable(error.problem or error)})") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise SettingsError(f"{name}: broken YAML ({printable(error)})") from error
    except RecursionError as error:
        raise SettingsError(f"{name}: nested too deeply for a policy") from error


def _walk(node: yaml.Node, keys: _Keys, name: str) -> Iterator[tuple[_Keys, int]]:
    """The line of every value; what YAML would pass over in silence is refused.

    An alias can make a document without end out of a few lines: depth is limited, and nodes are not walked twice.
    """
    waiting: list[tuple[yaml.Node, _Keys]] = [(node, keys)]
    seen: set[int] = set()
    while waiting:
        here, at = waiting.pop()
        line = here.start_mark.line + 1
        yield at, line
        if len(at) > _DEEPEST:
            raise SettingsError(f"{name}:{line}: nested too deeply for a policy")
        if isinstance(here, yaml.ScalarNode) and here.tag == "tag:yaml.org,2002:null" and at and at not in _NULLABLE:
            raise SettingsError(f"{name}:{line}: {_spoken(at)} has no value: give one, or leave the key out")
        if id(here) in seen and not isinstance(here, yaml.ScalarNode):
            raise SettingsError(f"{name}:{line}: {_spoken(at)} is an alias of a whole section: write it out")
        seen.add(id(here))
        if isinstance(here, yaml.SequenceNode):
            waiting += [(item, (*at, place)) for place, item in enumerate(here.value)]
        elif isinstance(here, yaml.MappingNode):
            waiting += _entries(here, at, name)


def _entries(node: yaml.MappingNode, keys: _Keys, name: str) -> Iterator[tuple[yaml.Node, _Keys]]:
    known: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise SettingsError(f"{name}:{line}: {_spoken(keys)} has a key that is no plain word")
        if key.value in known:
            raise SettingsError(f"{name}:{line}: {_spoken((*keys, key.value))} is given twice: leave one of them")
        known.add(key.value)
        yield value, (*keys, key.value)


def _sentence(fault: ErrorDetails, name: str, lines: Mapping[_Keys, int]) -> str:
    keys: _Keys = tuple(fault["loc"])
    line = next((lines[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in lines), None)
    place = f"{name}:{line}" if line is not None else name
    return f"  {place}: {_spoken(keys)}: {_wanted(fault, keys)}"


def _wanted(fault: ErrorDetails, keys: _Keys) -> str:
    kind, given = fault["type"], fault["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        choices = _fields_at(keys[:-1])
        return "is no such key" + (f"; choose from {', '.join(choices)}" if choices else "")
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if kind == "value_error" or isinstance(given, Mapping | list):
        return message
    # The text of a container of aliases could be endless; that of a number can be long.
    if isinstance(given, int):
        return f"{message}, not {_number(given)}"
    return f"{message}, not {printable(given, 60) if isinstance(given, str | float) else f'a {type(given).__name__}'}"


def _number(value: int) -> str:
    """Python does not print a number of thousands of digits."""
    return str(value) if abs(value) < 10**30 else "so long a number"


def _spoken(keys: _Keys) -> str:
    return printable(".".join(str(key) for key in keys), 120) if keys else "the policy"


def _fields_at(keys: _Keys) -> list[str]:
    """The keys that belong at a place of a policy."""
    kind: Any = Policy
    for key in keys:
        field = kind.model_fields.get(str(key)) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        kind = _inner(field.annotation if field is not None else kind)
    kind = _inner(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _inner(kind: Any) -> Any:
    """The model inside ``Model | None``, or the type itself."""
    models = [each for each in get_args(kind) if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if models else kind
