# Pages: zeroed memory for what lives long, straight from the kernel once it is large.
#
# From malloc a table that grew among short-lived things stays in the heap's holes after it was freed. From the kernel
# it goes back at once, and what was never touched of it costs nothing, so a table may be generous with its room. The
# owner keeps the size and says it again when the memory is given back.

from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    static inline void *holdfast_map(size_t size) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }
    static inline void *holdfast_remap(void *memory, size_t size, size_t larger) {
        memory = mremap(memory, size, larger, MREMAP_MAYMOVE);
        return memory == MAP_FAILED ? NULL : memory;
    }
    """
    void *holdfast_map(size_t)
    void *holdfast_remap(void *, size_t, size_t)
    int munmap(void *, size_t)

cdef enum:
    PAGES_FROM = 12288          # bytes; less comes from malloc: a system call and a page would cost more than they give


cdef inline void *pages_take(size_t size) noexcept nogil:
    """`size` zeroed bytes, the caller's; NULL: out of memory."""
    return holdfast_map(size) if size >= PAGES_FROM else calloc(1, size)


cdef inline void pages_give(void *memory, size_t size) noexcept nogil:
    """Give back what `pages_take` or `pages_resize` gave for this size; NULL is nothing."""
    if memory == NULL:
        return
    if size >= PAGES_FROM:
        munmap(memory, size)
    else:
        free(memory)


cdef inline void *pages_resize(void *memory, size_t size, size_t larger) noexcept nogil:
    """The same bytes with room for more, perhaps elsewhere; NULL: out of memory, and the old ones stay.

    What is new is zeroed only if it comes from the kernel.
    """
    cdef void *moved
    if size >= PAGES_FROM:
        return holdfast_remap(memory, size, larger)
    if larger < PAGES_FROM:
        return realloc(memory, larger)
    moved = holdfast_map(larger)
    if moved != NULL and size:          # nothing is copied from NULL, not even nothing: C leaves that undefined
        memcpy(moved, memory, size)
        free(memory)
    return moved
