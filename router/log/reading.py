"""The embedded log's messages, read from where its index says that they are."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core import log_records
from core.log_index import LogIndex
from router.log import segments
from router.log.port import Loaded, Position, Standing

_log = logging.getLogger("holdfast.log")

_Place = tuple[int, int, int, int, int]
"""Segment, where in it, bytes, check, and the number of the channel."""


def read_channels(directory: Path, index: LogIndex, channels: Sequence[bytes]) -> list[Loaded]:
    """What is kept of channels, in their order. Nothing may move records meanwhile; appends may go on.

    Raises:
        OSError: a segment cannot be read. One that is gone has nothing that is kept.
    """
    positions = [Position(*index.position(channel)) for channel in channels]
    found: list[list[bytes]] = [[] for _ in channels]
    wanted = [(*place, number) for number, channel in enumerate(channels) for place in index.places(channel)]
    # Sorted, a segment is opened once; a channel's messages are in their order in it anyway.
    for segment, places in itertools.groupby(sorted(wanted), key=lambda place: place[0]):
        for number, record in _records(directory / segments.name_of(segment), index, list(places)):
            found[number].append(record)
    return [Loaded(position, b"".join(records)) for position, records in zip(positions, found, strict=True)]


def read_standing(directory: Path, index: LogIndex, namespaces: Sequence[str]) -> list[Standing]:
    """Where the channels of some namespaces stand that have messages, the one with the newest first. As above."""
    known = [one for namespace in namespaces for one in index.last_places(namespace.encode())]
    found: list[Standing] = []
    wanted = sorted((*one[3:], number) for number, one in enumerate(known))
    for segment, places in itertools.groupby(wanted, key=lambda place: place[0]):
        for number, record in _records(directory / segments.name_of(segment), index, list(places)):
            channel, epoch, offset = known[number][:3]
            (entry,) = log_records.entries(record)
            found.append(Standing(channel, Position(epoch, offset), entry.time_ms))
    return sorted(found, key=lambda one: one.time_ms, reverse=True)


def _records(path: Path, index: LogIndex, places: Sequence[_Place]) -> Iterator[tuple[int, bytes]]:
    """(number of the channel, record) of those in one segment that are as they were written."""
    whole = 0
    try:
        with segments.opened(path, os.O_RDONLY) as fd:
            for _, at, size, check, number in places:
                record = os.pread(fd, size, at)
                if len(record) == size and index.check(record) == check:
                    whole += 1
                    yield number, record
    except FileNotFoundError:
        pass
    if whole < len(places):
        _log.error(
            "%s: %d messages are damaged or gone: they are lost, and readers are told of a gap",
            path,
            len(places) - whole,
        )
