/* invariant(cond): ours, checked builds only. invariant_always(cond): the cheap ones that guard memory.
   Both print and abort: Cython's own assert is ignored inside a noexcept nogil function. */
#ifndef HOLDFAST_INVARIANT_H
#define HOLDFAST_INVARIANT_H
#include <stdio.h>
#include <stdlib.h>

#ifndef HOLDFAST_CHECKS
#define HOLDFAST_CHECKS 0
#endif

#define invariant_always(cond)                                                                  \
    do {                                                                                        \
        if (__builtin_expect(!(cond), 0)) {                                                     \
            fprintf(stderr, "holdfast: broken invariant at %s:%d: %s\n", __FILE__, __LINE__, #cond); \
            abort();                                                                            \
        }                                                                                       \
    } while (0)

#if HOLDFAST_CHECKS
#define invariant(cond) invariant_always(cond)
#else
#define invariant(cond) ((void)0)
#endif

#endif
