"""Vitals: room for them beside the connections."""

VITAL_BYTES = sizeof(Vital)
assert sizeof(Vital) == 32


cdef void vitals_init(Slab *connections) noexcept nogil:
    """Keep vitals beside each connection of a table that is still empty."""
    connections.beside_size = sizeof(Vital)
