"""Claims as etcd's transactions, and what its answers say of each; no I/O.

A batch is one transaction. It compares a key of whoever sends it, the lane, and changes it: so a batch is applied once
at most, however often it is sent, and nothing of it is applied after a later batch of the same lane. Inside, each claim
is a transaction of its own, whose comparisons etcd makes before anything is changed. All that one batch changes has one
revision, which no other change has: what an answer would have said can be read from the lane's revision later on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from router.directory import etcdpb_pb2 as pb
from router.directory.port import NODES, Claim, Lost, NodeEpoch, Result, Won

# etcd takes 128 operations in a transaction, the nested ones of the longest branch counted with the outer ones.
CLAIMS_MAX = 120
# It takes requests of 1.5 MiB.
BATCH_BYTES_MAX = 1024 * 1024


class Lane:
    """A key that only one sender changes, and always one batch after the other.

    Args:
        key: with the prefix; never used before.
        lease: on which it lives.
        revision: of its first put.

    """

    def __init__(self, key: bytes, lease: int, revision: int) -> None:
        self.key = key
        self.lease = lease
        self.revision = revision
        self.number = 0
        """Of the last batch that was sent."""

    @property
    def mark(self) -> bytes:
        """What stands at the key when the last batch was applied."""
        return b"%d" % self.number


def batch(lane: Lane, prefix: str, claims: Sequence[Claim]) -> pb.TxnRequest:
    """The transaction that settles claims of different keys, as the lane's last batch."""
    request = pb.TxnRequest()
    request.compare.append(_revision_is(lane.key, lane.revision))
    put = request.success.add().request_put
    put.key, put.value, put.lease = lane.key, lane.mark, lane.lease
    nodes: dict[NodeEpoch, pb.Compare] = {}
    for claim in claims:
        if claim.alive is not None and claim.alive not in nodes:
            nodes[claim.alive] = _lives(prefix, claim.alive)
        _fill(request.success.add().request_txn, prefix, claim, nodes)
    request.failure.add().request_range.key = lane.key
    return request


def results(answer: pb.TxnResponse, claims: Sequence[Claim]) -> list[Result]:
    """What became of the claims of a batch that was applied by this very answer."""
    won = Won(answer.header.revision)
    return [
        won if one.response_txn.succeeded else _lost(_only(one.response_txn.responses[0]), claim)
        for one, claim in zip(answer.responses[1:], claims, strict=True)
    ]


def lane_of(answer: pb.TxnResponse) -> pb.KeyValue | None:
    """The lane as it is, from an answer by which nothing was applied; None: it is gone."""
    found = answer.responses[0].response_range.kvs
    return found[0] if found else None


def history(revision: int, prefix: str, claims: Sequence[Claim]) -> pb.TxnRequest:
    """Asks what stood at the claims' keys at a revision."""
    request = pb.TxnRequest()
    for claim in claims:
        asked = request.success.add().request_range
        asked.key, asked.revision = (prefix + claim.key).encode(), revision
    return request


def results_of_history(
    revision: int, claims: Sequence[Claim], before: pb.TxnResponse, after: pb.TxnResponse
) -> list[Result]:
    """What became of the claims of a batch that was applied at a revision, by what stood there before it and after."""
    found: list[Result] = []
    for claim, was, has in zip(claims, before.responses, after.responses, strict=True):
        old, new = _only(was), _only(has)
        if new is not None and new.mod_revision == revision:
            found.append(Won(revision))
        elif new is None and old is not None:
            found.append(Won(revision))  # nothing but the batch was applied at this revision
        else:
            found.append(_lost(new, claim))
    return found


def _fill(request: pb.TxnRequest, prefix: str, claim: Claim, nodes: Mapping[NodeEpoch, pb.Compare]) -> None:
    name, revision, value, alive = claim
    key = (prefix + name).encode()
    compare = request.compare.add()  # field by field: keyword arguments cost twice the time
    compare.target, compare.key, compare.mod_revision = pb.Compare.MOD, key, revision
    if alive is not None:
        request.compare.append(nodes[alive])
    request.failure.add().request_range.key = key
    if value is None:
        request.success.add().request_delete_range.key = key
    else:
        put = request.success.add().request_put
        put.key, put.value = key, value


def _lives(prefix: str, alive: NodeEpoch) -> pb.Compare:
    node = (prefix + NODES + alive.node).encode()
    return pb.Compare(target=pb.Compare.CREATE, key=node, create_revision=alive.epoch)


def _lost(there: pb.KeyValue | None, claim: Claim) -> Lost:
    """With the revision that it expected, it can only have lost because its node is gone."""
    if there is None:
        return Lost(0, None, alive=claim.expected_revision != 0)
    return Lost(there.mod_revision, there.value, alive=claim.expected_revision != there.mod_revision)


def _only(answer: Any) -> pb.KeyValue | None:
    found = answer.response_range.kvs
    return found[0] if found else None


def _revision_is(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)
