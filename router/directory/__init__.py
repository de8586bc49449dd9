"""The directory: who is there, who leads which shard, who has which session."""

import os

# gRPC writes each failed handshake to standard error, several a second; what is wrong stands in our own log, once. To
# be set before it is imported, which is done in this package alone.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
