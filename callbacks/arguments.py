"""The callback's settings as arguments of a training script: for TrlParser next to DPOConfig, without clashes."""

from __future__ import annotations

from dataclasses import Field, field, fields, make_dataclass
from typing import Any, TypeVar, get_type_hints

from trl_attribution.callbacks.config import CallbackConfig

PREFIX = "audit_"
T = TypeVar("T")


def _with_settings(cls: type[T]) -> type[T]:
    """``cls`` as a dataclass with every field of CallbackConfig, prefixed."""
    kinds = get_type_hints(CallbackConfig)
    made = make_dataclass(
        cls.__name__,
        [(PREFIX + one.name, kinds[one.name], _same_field(one)) for one in fields(CallbackConfig)],
        bases=(cls,),
        namespace={"__doc__": cls.__doc__},
    )
    made.__module__ = cls.__module__
    return made


def _same_field(setting: Field[Any]) -> Any:
    return field(default=setting.default, metadata=setting.metadata)


@_with_settings
class AuditArguments:
    """Every setting of :class:`CallbackConfig`, with ``audit_`` before its name.

    ``DPOConfig`` has an ``output_dir`` and a ``seed`` of its own, and a parser takes no name twice.

    Example:
        >>> from trl import ModelConfig, ScriptArguments, TrlParser
        >>> parser = TrlParser((ScriptArguments, ModelConfig, AuditArguments))
        >>> script, model, audit = parser.parse_args_and_config(["--audit_layers", "20", "--audit_output_dir", "a/"])
        >>> audit.to_config().layers
        [20]
    """

    def to_config(self) -> CallbackConfig:
        """The settings by their own names.

        Raises:
            SettingsError: one is out of range, or contradicts another.
        """
        return CallbackConfig(**{name.removeprefix(PREFIX): value for name, value in vars(self).items()})
