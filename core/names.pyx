"""Names: keep and drop, and a Python face for the tests."""

from libc.string cimport memcpy

from core.slab cimport SLAB_NONE, slab_acquire, slab_check, slab_free, slab_init, slab_release


cdef void names_init(Names *names) noexcept nogil:
    cdef uint32_t place
    for place in range(NAME_CLASSES):
        slab_init(&names.slabs[place], (place + 1) * NAME_STEP, NAME_CHUNK_SHIFT, 0xFFFFFFFE)


cdef void names_free(Names *names) noexcept nogil:
    """Give everything back; a zeroed struct holds nothing."""
    cdef uint32_t place
    for place in range(NAME_CLASSES):
        slab_free(&names.slabs[place])


cdef uint32_t name_keep(Names *names, const char *text, uint32_t size) noexcept nogil:
    """Copy a name of 1 to 255 bytes; its number, SLAB_NONE without memory."""
    cdef uint32_t name
    if size == 0 or size > 255:
        return SLAB_NONE
    name = slab_acquire(name_slab(names, size))
    if name != SLAB_NONE:
        memcpy(<char *> name_text(names, name, size), text, size)
    return name


cdef void name_drop(Names *names, uint32_t name, uint32_t size) noexcept nogil:
    slab_release(name_slab(names, size), name)


cdef class NameTable:
    """Names for tests."""

    cdef Names names

    def __cinit__(self):
        names_init(&self.names)

    def __dealloc__(self):
        names_free(&self.names)

    def keep(self, bytes text):
        """The name's number, None for a size that no name has."""
        cdef uint32_t name = name_keep(&self.names, text, len(text))
        return None if name == SLAB_NONE else name

    def text(self, uint32_t name, uint32_t size):
        return name_text(&self.names, name, size)[:size]

    def drop(self, uint32_t name, uint32_t size):
        name_drop(&self.names, name, size)

    def check(self):
        """Whether every slab's counts agree with its lists."""
        return all(slab_check(&self.names.slabs[place]) for place in range(NAME_CLASSES))

    def __len__(self):
        return sum(self.names.slabs[place].live for place in range(NAME_CLASSES))
