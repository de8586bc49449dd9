"""Load users for locust: `make locust`, or `locust -f loadtest/locustfile.py --host ws://127.0.0.1:7401/ws`.

One locust user stands for many connections (`--connections-per-user`), which the core in client mode holds in a thread
of its own. What stands in loadtest/locust_users/ is listed in its `__init__`.
"""

from loadtest.locust_users import hooks
from loadtest.locust_users.users import Chatter, Flapper, Idle, Lurker

__all__ = ["Chatter", "Flapper", "Idle", "Lurker", "hooks"]
