"""Who leads which shard and who owns which session: logic without I/O, clock or asyncio. Events in, effects out."""
