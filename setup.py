"""Build of the Cython kernels; everything else about the package is in pyproject.toml.

One switch, the environment variable PICKGATE_BUILD, selects the kind of build:

* ``release`` (default): -O3, no checks beyond those the sources ask for;
* ``debug``: -O0 -g, bounds and None checks on everywhere, assertions on;
* ``sanitize``: AddressSanitizer and UndefinedBehaviorSanitizer (run by ``make sanitize``);
* ``coverage``: Cython line tracing, for ``make coverage``;
* ``none``: no kernels, for an editable install before ``build_ext --inplace`` (pip compiles in a folder of its own, so
  all would be compiled twice).

A kernel is compiled again only if its sources (or the .pxd files they cimport) or the kind of build changed.
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
NEEDS_NO_LIBCRYPTO = {"answers", "geo", "scan", "script_calls"}

C_FLAGS = {
    "release": ["-O3", "-fno-math-errno"],
    "debug": ["-O0", "-g", "-UNDEBUG"],
    "sanitize": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-UNDEBUG"],
    "coverage": ["-O1", "-g"],
    "none": [],
}
LINK_FLAGS = {"sanitize": ["-fsanitize=address,undefined"]}
MACROS = {"coverage": [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]}
DIRECTIVES: dict[str, dict[str, bool]] = {
    "debug": {"boundscheck": True, "wraparound": True, "nonecheck": True, "initializedcheck": True},
    "coverage": {"linetrace": True},
}

kind = os.environ.get("PICKGATE_BUILD", "release")
if kind not in C_FLAGS:
    raise SystemExit(f"PICKGATE_BUILD={kind!r} is not known; expected one of {', '.join(C_FLAGS)}")

os.chdir(ROOT)
build_dir = Path("build")


class BuildKernels(build_ext):
    """Compiles all kernels again when the kind of build is not that of the last one: both write the same .so files."""

    def run(self) -> None:
        """Build, then note the kind."""
        kind_file = build_dir / "kind"
        self.force = self.force or not kind_file.exists() or kind_file.read_text() != kind
        self.parallel = self.parallel or os.cpu_count()
        super().run()
        build_dir.mkdir(exist_ok=True)
        kind_file.write_text(kind)


extensions = [
    Extension(
        f"ext.{source.stem}",
        [source.as_posix()],
        include_dirs=[numpy.get_include()],
        libraries=[] if source.stem in NEEDS_NO_LIBCRYPTO else ["crypto"],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), *MACROS.get(kind, [])],
        # Sign comparisons are Cython's own, in the loops that it generates.
        extra_compile_args=["-fvisibility=hidden", "-Wno-sign-compare", *C_FLAGS[kind]],
        extra_link_args=LINK_FLAGS.get(kind, []),
    )
    for source in ([] if kind == "none" else sorted(Path("ext").glob("*.pyx")))
]

setup(
    packages=[
        *find_packages(
            include=["engine", "engine.*", "ext", "server", "server.*", "loadtests", "loadtests.*"]
        ),
        *find_packages("proto"),
    ],
    # Only the generated stubs are mapped: making proto/ itself importable collides with proto-plus.
    package_dir={"pickgate": "proto/pickgate"},
    ext_modules=cythonize(
        extensions,
        # The coverage plugin looks for the C file beside its source; otherwise the tree stays clean.
        build_dir=None if kind == "coverage" else str(build_dir / kind),
        compiler_directives={
            "language_level": 3,
            "show_performance_hints": False,
            **DIRECTIVES.get(kind, {}),
        },
        quiet=True,
    ),
    cmdclass={"build_ext": BuildKernels},
)
