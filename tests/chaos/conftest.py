"""What `make test` leaves to `make chaos`."""

from tests.chaos.rounds import FULL

# Three regions with real delays need a machine to themselves: beside other tests their bounds say more of the machine.
# tests/process/test_regions.py has two regions without them in every run.
collect_ignore = [] if FULL else ["test_regions.py", "test_region_evacuation.py", "test_region_costs.py"]
