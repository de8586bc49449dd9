"""Settings of regions: what is told to whom, and what does not fit together."""

from pathlib import Path

import pytest

from gateway.cluster_config import address, directory_config, targets_at
from gateway.config import router_config, worker_config
from gateway.region_config import as_text, logs_of, targets_of
from gateway.settings import load
from tests.gateway.test_cluster_config import MACHINE, NODE, complaints, configured

REDIS: dict[str, object] = NODE | {"log.backend": "redis", "log.redis_url": "redis://eu:6379/0"}
REGIONS: dict[str, object] = REDIS | {"directory.region": "eu", "log.regions": "us=redis://us:6379/0"}
LOGS = "us=redis://us:6379/0 ap=redis+sentinel://h1:26379,h2:26379/name"


def test_without_regions_nothing_is_told_of_any() -> None:
    config = configured(REDIS)
    directory = directory_config(config)
    assert directory is not None
    assert (directory.region, directory.placement) == ("", "spread")
    assert router_config(config, epoch=1, endpoint="e").log_regions == {}
    assert worker_config(config, index=0, epoch=1, router_endpoint="").region == ""


def test_the_router_is_told_where_it_is_and_of_the_others_logs() -> None:
    config = configured(REGIONS | {"log.regions": LOGS, "directory.placement": "eu,us"})
    directory = directory_config(config)
    assert directory is not None
    assert (directory.region, directory.placement) == ("eu", "eu,us")
    told = router_config(config, epoch=1, endpoint="e").log_regions
    assert told == {"us": "redis://us:6379/0", "ap": "redis+sentinel://h1:26379,h2:26379/name"}
    assert worker_config(config, index=0, epoch=1, router_endpoint="").region == "eu"


def test_a_region_without_logs_of_others_is_a_word_in_the_directory() -> None:
    config = configured(REDIS | {"directory.region": "eu"})
    assert worker_config(config, index=0, epoch=1, router_endpoint="").region == ""


def test_in_the_file_the_logs_may_be_a_table(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text('[log.regions]\nus = "redis://us:6379/0"\nap = "rediss://ap:6379/0"\n')
    given = {key: value for key, value in REGIONS.items() if key != "log.regions"}
    config = load(file, {}, given, MACHINE)
    assert logs_of(config.log.regions) == {"us": "redis://us:6379/0", "ap": "rediss://ap:6379/0"}
    assert as_text(dict(logs_of(config.log.regions))) == config.log.regions


def test_a_gateway_says_where_clients_reach_it_and_a_router_does_not() -> None:
    config = configured(NODE | {"gateway.advertise": "tls://eu:7400,wss://eu/ws,wss://eu-2/ws"})
    assert targets_at(address(config, bus=False)) == ("wss://eu/ws", "tls://eu:7400")
    assert "clients" not in address(config)
    assert targets_of("tcp://eu:7400") == ("", "tcp://eu:7400")
    assert [targets_at(text) for text in ("", "[]", "7", '{"clients": 1}')] == [("", "")] * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"directory.region": "eu"}, "without directory.endpoints: a node that is alone is in no region"),
        (NODE | {"directory.region": "EU"}, "must be a small letter"),
        (NODE | {"directory.placement": "eu,us"}, 'directory.placement = "eu,us" without directory.region'),
        (NODE | {"directory.region": "eu", "directory.placement": "eu,spread"}, "spread and publishers stand alone"),
        (
            REGIONS | {"directory.placement": "publisher"},
            "names publisher, which is none of eu, us; did you mean publish",
        ),
        (REGIONS | {"directory.placement": "eu,su"}, "names su, which is none of eu, us"),
        (REGIONS | {"directory.placement": "eu,us,eu"}, "names eu twice"),
        (NODE | {"directory.placement": "eu us"}, "must be spread, publishers, or names of regions with commas"),
        (NODE | {"gateway.advertise": "http://eu"}, "must be URLs that begin with wss://"),
        (REDIS | {"log.regions": "us=redis://us:6379/0"}, "log.regions without directory.endpoints and directory.regi"),
        (NODE | {"directory.region": "eu", "log.regions": "us=redis://us"}, "log.backend = none with log.regions"),
        (REGIONS | {"directory.region": "us"}, "log.regions names us, where this node is"),
        (REGIONS | {"log.regions": "us=redis://a us=redis://b"}, "log.regions names a region twice"),
        (REGIONS | {"log.regions": "spread=redis://a"}, "log.regions names spread, which is a word of"),
        (REGIONS | {"log.regions": "us=redis://eu:6379/0"}, "log.regions names this region's own log"),
        (REGIONS | {"log.regions": "us=http://us"}, "log.regions, us: a Redis URL begins with"),
        (REGIONS | {"log.regions": "us=redis+cluster://us:1"}, "Redis Cluster cannot be followed from another region"),
        (REGIONS | {"log.regions": "us"}, "log.regions = (hidden) on the command line: must be region=URL"),
        (
            REGIONS | {"namespaces.live.domain": "group", "namespaces.live.history_messages": 0},
            "namespaces.live.history_messages = 0 with log.regions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(given: dict[str, object], said: str) -> None:
    assert said in complaints(given)


def test_everybodys_channels_may_keep_nothing() -> None:
    assert configured(REGIONS | {"namespaces.all.domain": "global", "namespaces.all.history_messages": 0}).log.regions
