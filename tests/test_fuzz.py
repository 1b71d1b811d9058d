"""What is a little wrong is read, or ends in an own error: no other exception, and no warning."""

from __future__ import annotations

import pytest
from fuzzing import FUZZED, read_or_refuse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 30  # of each kind
pytestmark = pytest.mark.usefixtures("quiet_tifffile")


@pytest.mark.parametrize("kind", FUZZED)
@given(data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_what_is_a_little_wrong_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    fuzzed = FUZZED[kind]
    read_or_refuse(kind, fuzzed.change(data.draw, fuzzed.files()))
