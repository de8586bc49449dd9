"""The benchmark: workloads against the floor program, Holdfast and its peers; see loadtest/README.md."""
