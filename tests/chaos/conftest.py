"""What `make test` leaves to `make chaos`."""

from tests.chaos.rounds import FULL

# Three regions with real delays need a machine to themselves, and one that lets a program carry packets (TUN): beside
# other tests their bounds say more of the machine. tests/process/test_regions.py has two regions in every run.
REGIONS = ["test_regions.py", "test_region_costs.py", "test_region_evacuation.py", "test_region_rig.py", "test_wan.py"]
collect_ignore = [] if FULL else REGIONS
