"""The load users of `loadtest/locustfile.py`: locust drives, the core in client mode holds the connections.

options    what `make locust ARGS=…` takes beside locust's own options
fleet      one process's connections: a core thread, and the greenlet that takes what it tells
figures    counters and histograms of the core as locust's own statistics
verdict    the client's counts against the server's, and the exit code
users      who there is: idle, chatter, lurker, flapper
hooks      when what happens, in one process and with workers
"""
