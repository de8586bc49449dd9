"""The soak: a node under every kind of client, the good and the bad, for as long as one likes; nothing may be left."""
