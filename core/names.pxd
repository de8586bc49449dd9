# Names: the texts of channels, kept beside each other without a header each.
#
# A name is 1 to 255 bytes. There is a slab for each size in steps of 4 bytes, so that a name costs its size rounded up
# and no more; its owner keeps the size and a 32-bit number instead of an address. Invariant: a number is given back
# with the size under which it was got.

from libc.stdint cimport uint32_t

from core.slab cimport Slab, slab_at

cdef enum:
    NAME_STEP = 4               # bytes
    NAME_CLASSES = 64           # up to 256 bytes
    NAME_CHUNK_SHIFT = 10       # 1,024 names a chunk: whole pages, whatever their size

ctypedef struct Names:
    Slab slabs[NAME_CLASSES]    # owned


cdef inline Slab *name_slab(Names *names, uint32_t size) noexcept nogil:
    """The slab of all names of this size, 1 to 255 bytes."""
    return &names.slabs[(size - 1) // NAME_STEP]


cdef inline const char *name_text(Names *names, uint32_t name, uint32_t size) noexcept nogil:
    """The name's bytes, not terminated, where they stay until it is dropped."""
    return <const char *> slab_at(name_slab(names, size), name)


cdef void names_init(Names *names) noexcept nogil
cdef void names_free(Names *names) noexcept nogil
cdef uint32_t name_keep(Names *names, const char *text, uint32_t size) noexcept nogil
cdef void name_drop(Names *names, uint32_t name, uint32_t size) noexcept nogil
