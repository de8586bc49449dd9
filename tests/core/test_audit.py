"""What every audit has in common: what is unpacked of it, and that strangers' bytes are refused."""

import pytest

from core import audit
from core.ledger import CONTROL_KINDS, KINDS
from tests.core.edge_harness import Edge
from tests.core.test_audit_edge import look


def test_kinds_of_the_control_thread_are_not_the_data_planes(edge: Edge) -> None:
    report = look(edge)
    assert set(report["kinds"]) == set(KINDS) - set(CONTROL_KINDS)
    assert report["finding_count"] == 0
    assert 0 < report["walked_us"] < 10_000_000


def test_anything_else_is_no_audit() -> None:
    with pytest.raises(ValueError, match="no audit"):
        audit.unpack(b"something", b"")
