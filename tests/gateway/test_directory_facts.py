"""Whether a directory answers, told before a node runs."""

from gateway.directory_facts import directory_error
from gateway.settings import load
from tests.conftest import free_ports
from tests.gateway.test_cluster_config import ETCD, MACHINE, NODE
from tests.servers import etcd


def test_a_directory_that_answers_has_no_error(etcd_member: etcd.Member) -> None:
    assert directory_error(load(None, {}, NODE | {"directory.endpoints": etcd_member.endpoint}, MACHINE)) == ""


def test_one_that_is_away_says_so() -> None:
    given = ETCD | {"directory.endpoints": f"127.0.0.1:{free_ports(1)[0]}", "node.role": "gateway"}
    assert directory_error(load(None, {}, given, MACHINE))


def test_a_node_that_is_alone_has_none() -> None:
    assert directory_error(load(None, {}, {}, MACHINE)) is None
