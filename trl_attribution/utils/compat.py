"""What differs between the versions of other packages that people run, each with the version at which it can go.

Nothing here imports the package that it is about before it is asked: versions are read from what pip has written.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from types import MappingProxyType
from typing import Any

from packaging.version import Version

from trl_attribution.errors import SettingsError

SUPPORTED: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "trl": ("0.29", "2"),
        "transformers": ("4.56.2", "6"),
        "datasets": ("4.4", None),
        "huggingface-hub": ("0.36", None),
        "accelerate": ("1.10", None),
        "torch": ("2.6", None),
        "peft": ("0.18", None),
    }
)
"""The first version that is supported, and the first that is not; pyproject.toml says the same."""


@cache
def check_versions() -> None:
    """Refuse versions that are known not to work, or are too new to be known, before anything is built on them.

    Raises:
        SettingsError: an unsupported version is installed.
    """
    for package, (first, beyond) in SUPPORTED.items():
        found = version_of(package)
        if found is None or (found >= Version(first) and (beyond is None or found.major < int(beyond))):
            continue
        wanted = f"{package}>={first}" + (f",<{beyond}" if beyond else "")
        raise SettingsError(
            f"{package} {found} is installed, which is not supported: pip install '{wanted}' (the versions that were "
            "tried together are in docs/reference/versions.md)"
        )


@cache
def version_of(package: str) -> Version | None:
    """The installed version of ``package``; None where there is none, or its version is not known."""
    try:
        return Version(installed_version(package))
    except PackageNotFoundError:
        return None


def is_before(package: str, version: str) -> bool:
    """Whether an older version of ``package`` is installed; one whose version is not known is taken for the newest."""
    found = version_of(package)
    return found is not None and found < _parsed(version)


@cache  # the comparison is made for every pair, and reading a version takes most of it
def _parsed(version: str) -> Version:
    return Version(version)


def keeps_whole_prompts() -> bool:
    """Whether TRL keeps all tokens of a prompt, wherever prompt + response parts from them. Goes with TRL 1.14.2."""
    return is_before("trl", "1.14.2")


def drops_empty_keys() -> bool:
    """Whether TRL takes keys without a value out of messages and tools before the template sees them. Goes with 1.0."""
    return is_before("trl", "1.0")


def is_json(feature: Any) -> bool:
    """Whether the type of a column is ``datasets.Json``, without a look at it where there is none. Goes with 4.7."""
    import datasets

    kind = getattr(datasets, "Json", None)
    return kind is not None and isinstance(feature, kind)


def http_error() -> type[Exception]:
    """The base of errors of the HTTP library that the hub library works with. Goes with hub 1.31, which exports it.

    The hub's own error comes from it first: ``requests`` before 1.0, ``httpx`` before 2.0, ``httpx2`` since.
    """
    from huggingface_hub.errors import HfHubHTTPError

    found = HfHubHTTPError.__bases__[0]
    assert issubclass(found, Exception)
    return found
