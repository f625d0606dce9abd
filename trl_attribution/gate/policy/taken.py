"""Sections of a policy whose settings are declared elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, GetCoreSchemaHandler, PlainSerializer, create_model

from trl_attribution.gate.policy.rules import Part
from trl_attribution.utils.declared import field_texts, first_paragraph

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Taken:
    """``Annotated[Reading, Taken("ReadingOptions", {"split": str | None})]``: some settings of ``Reading``.

    A key has the name, the default and the text of a field of the dataclass; what it may hold is said here.
    """

    name: str
    """What the reference calls the section."""
    kinds: Mapping[str, Any]
    """Key -> type."""

    def __get_pydantic_core_schema__(self, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A mapping, checked as the rest of the policy is, and then made into the dataclass."""
        made = AfterValidator(lambda section: source(**dict(section)))
        written = PlainSerializer(lambda settings: {name: getattr(settings, name) for name in self.kinds})
        return handler.generate_schema(Annotated[self._model(source), made, written])

    def _model(self, source: type) -> type[BaseModel]:
        texts = field_texts(source)
        defaults = {field.name: field.default for field in fields(source)}
        keys: dict[str, Any] = {
            name: (kind, Field(defaults[name], description=re.sub(r"\bNone\b", "``null``", texts[name])))
            for name, kind in self.kinds.items()
        }
        return create_model(self.name, __base__=Part, __doc__=first_paragraph(source.__doc__ or ""), **keys)


def one_of(*values: str) -> Any:
    """The type that has only these values."""
    return Literal[values]
