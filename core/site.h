/* HOLDFAST_HERE: where this line stands, as a constant that lives as long as the program. Checked builds only: in
   release it is NULL, and whoever is given it drops it. The module says into which file an inline verb was compiled. */
#ifndef HOLDFAST_SITE_H
#define HOLDFAST_SITE_H
#include "invariant.h"

typedef struct HoldfastSite {
    const char *file;
    const char *module;
    int line;
} HoldfastSite;

#if HOLDFAST_CHECKS
#define HOLDFAST_HERE                                                                             \
    (__extension__({                                                                              \
        static const HoldfastSite holdfast_here = {__FILE__, __Pyx_MODULE_NAME, __LINE__};        \
        &holdfast_here;                                                                           \
    }))
#else
#define HOLDFAST_HERE ((const HoldfastSite *)0)
#endif

#endif
