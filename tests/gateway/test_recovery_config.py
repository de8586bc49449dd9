"""The settings of the recovery server, and what does not fit beside them."""

from tests.gateway.test_cluster_config import complaints, configured

ON: dict[str, object] = {"recovery.port": 7403}


def test_there_is_none_unless_it_has_a_port() -> None:
    assert configured({}).recovery.port == 0
    assert configured(ON).recovery.port == 7403


def test_it_listens_where_the_gateway_does_unless_told() -> None:
    assert configured(ON | {"gateway.host": "127.0.0.2"}).recovery.host == "127.0.0.2"
    assert configured(ON | {"recovery.host": "localhost"}).recovery.host == "127.0.0.1"


def test_its_port_is_its_own_and_its_address_one() -> None:
    same = complaints({"recovery.port": 7402})
    assert "recovery.port and admin.port are both 7402" in same
    strange = complaints(ON | {"recovery.host": "nowhere.example"})
    assert 'recovery.host = "nowhere.example": must be an IPv4 or IPv6 address' in strange
