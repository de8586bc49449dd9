"""The directory: who is there, who leads which shard, who has which session."""
