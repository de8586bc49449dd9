class Cutter:
    def __init__(
        self,
        evalsha: bytes,
        starts: list[bytes],
        keys: list[bytes],
        settings: bytes,
        retentions: list[tuple[bytes, bytes, bytes]],
        shared: bool = False,
    ) -> None: ...
    def forget(self) -> None: ...
    def cut(self, batch: bytes, epoch: int, numbers: list[int]) -> list[tuple[int, bytes]]: ...

def tail_records(tail: bytes, shard: int = 0) -> bytes: ...
