"""The tiny model that audits are tested on, and a probe on it; once a module, for some tests change what they load."""

from __future__ import annotations

import pytest

from tests.audit_cases import tiny_loaded, tiny_probe
from trl_attribution import Probe
from trl_attribution.models import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def probe(loaded: LoadedModel) -> Probe:
    return tiny_probe(loaded)
