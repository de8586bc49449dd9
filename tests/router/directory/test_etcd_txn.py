"""Claims as transactions: within etcd's limits, and read back the same from an answer and from the history.

That etcd understands them so is in test_etcd_claims.py.
"""

from hypothesis import given
from hypothesis import strategies as st

from router.directory import etcd_txn
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd_txn import CLAIMS_MAX, Lane
from router.directory.port import KEY_BYTES_MAX, VALUE_BYTES_MAX, Claim, Lost, NodeEpoch, Result, Won

OPERATIONS_MAX = 128
REQUEST_BYTES_MAX = 3 * 512 * 1024
NODE = NodeEpoch("a", 5)
REVISION = 100


def lane() -> Lane:
    made = Lane(b"p/lanes/1", 7, 42)
    made.number = 3
    return made


def deepest(request: pb.TxnRequest) -> int:
    """Operations of the longest branch, as etcd counts them."""
    own = max(len(request.compare), len(request.success), len(request.failure))
    nested = [one.request_txn for one in [*request.success, *request.failure] if one.HasField("request_txn")]
    return own + max(map(deepest, nested), default=0)


def test_the_largest_batch_is_within_what_etcd_takes() -> None:
    claims = [Claim(f"{number}", 1, b"", NODE) for number in range(CLAIMS_MAX)]
    assert deepest(etcd_txn.batch(lane(), "p/", claims)) <= OPERATIONS_MAX
    assert len(etcd_txn.history(5, "p/", claims).success) <= OPERATIONS_MAX
    # A batch is closed as soon as it reaches its bytes, so that the last claim may go beyond them.
    last = Claim("k" * KEY_BYTES_MAX, 1, bytes(VALUE_BYTES_MAX), NODE)
    small = Claim("k" * KEY_BYTES_MAX, 1, b"", NODE)
    rest = etcd_txn.batch(lane(), "p/", [small] * CLAIMS_MAX).ByteSize()
    assert etcd_txn.BATCH_BYTES_MAX + last.key.__len__() + VALUE_BYTES_MAX + rest <= REQUEST_BYTES_MAX


def test_a_batch_compares_its_lane_and_marks_it() -> None:
    request = etcd_txn.batch(lane(), "p/", [Claim("k", 9, b"v", NODE), Claim("l", 8, None)])
    [compare] = request.compare
    assert (compare.target, compare.key, compare.mod_revision) == (pb.Compare.MOD, b"p/lanes/1", 42)
    mark, put, delete = request.success
    assert (mark.request_put.value, mark.request_put.lease) == (b"3", 7)
    wanted = [(pb.Compare.MOD, b"p/k", 9, 0), (pb.Compare.CREATE, b"p/nodes/a", 0, 5)]
    assert [(one.target, one.key, one.mod_revision, one.create_revision) for one in put.request_txn.compare] == wanted
    assert put.request_txn.success[0].request_put.value == b"v"
    assert delete.request_txn.success[0].request_delete_range.key == b"p/l"
    assert request.failure[0].request_range.key == b"p/lanes/1"


def test_a_lane_that_is_gone_is_none() -> None:
    answer = pb.TxnResponse()
    answer.responses.add().response_range.SetInParent()
    assert etcd_txn.lane_of(answer) is None
    answer.responses[0].response_range.kvs.add(key=b"lane", mod_revision=4)
    found = etcd_txn.lane_of(answer)
    assert found is not None
    assert found.mod_revision == 4


STATES = st.none() | st.integers(1, 3)
KEYS = st.tuples(STATES, st.integers(0, 3), st.booleans(), st.sampled_from(["none", "lives", "dead"]))


@given(st.lists(KEYS, max_size=8))
def test_the_history_tells_what_the_answer_would_have_told(keys: list[tuple[int | None, int, bool, str]]) -> None:
    """Plays etcd: each key was at some revision, or not there; its claim expects one, and puts or deletes."""
    answer, before, after = pb.TxnResponse(), pb.TxnResponse(), pb.TxnResponse()
    answer.header.revision = REVISION
    answer.responses.add().response_put.SetInParent()
    claims: list[Claim] = []
    wanted: list[Result] = []
    for number, (was, expected, deletes, node) in enumerate(keys):
        value = None if deletes and expected else b"new"
        claims.append(Claim(f"{number}", expected, value, None if node == "none" else NODE))
        wins = (was or 0) == expected and node != "dead"
        own = answer.responses.add().response_txn
        own.succeeded = wins
        old, new = before.responses.add().response_range, after.responses.add().response_range
        old.SetInParent()
        new.SetInParent()
        if was:
            old.kvs.add(mod_revision=was, value=b"old")
        if not wins and was:
            new.kvs.add(mod_revision=was, value=b"old")
        elif wins and value is not None:
            new.kvs.add(mod_revision=REVISION, value=value)
        if wins:
            own.responses.add().response_put.SetInParent()
            wanted.append(Won(REVISION))
        else:
            own.responses.add().response_range.kvs.extend(old.kvs)
            wanted.append(Lost(was or 0, b"old" if was else None, alive=(was or 0) != expected))
    assert etcd_txn.results(answer, claims) == wanted
    assert etcd_txn.results_of_history(REVISION, claims, before, after) == wanted
