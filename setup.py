"""One table of extensions, the compiler directives and the build modes; metadata lives in pyproject.toml.

Build modes, chosen by HOLDFAST_BUILD:
  release  -O3, invariants that guard memory only (the default)
  checked  -O1 -g, every invariant, poisoned buffers (HOLDFAST_CHECKS)
  asan     the checked build under AddressSanitizer and UBSan
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODES = {
    "release": (["-O3", "-fno-strict-aliasing", "-fno-semantic-interposition"], [], []),
    "checked": (["-O1", "-g", "-fno-strict-aliasing"], [], [("HOLDFAST_CHECKS", "1")]),
    "asan": (
        ["-O1", "-g", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"],
        ["-fsanitize=address,undefined"],
        [("HOLDFAST_CHECKS", "1")],
    ),
}
MODE = os.environ.get("HOLDFAST_BUILD", "release")
COMPILE_ARGS, LINK_ARGS, MACROS = MODES[MODE]

EXTENSIONS = [
    Extension(
        f"core.{source.stem}",
        [str(source)],
        include_dirs=["core"],
        extra_compile_args=[
            *COMPILE_ARGS,
            "-Wall",
            "-Wno-unused-function",
            "-Wno-sign-compare",
            "-Wno-unreachable-code",
        ],
        extra_link_args=LINK_ARGS,
        define_macros=MACROS,
        libraries=["dl"],
        depends=[str(header) for header in sorted(Path("core").glob("*.h"))],
    )
    for source in sorted(Path("core").glob("*.pyx"))
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        compiler_directives=DIRECTIVES,
        emit_linenums=MODE != "release",
        build_dir=f"build/cython-{MODE}",
        nthreads=os.cpu_count() or 1,
    )
)
