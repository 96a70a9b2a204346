"""Builds fastprio._core: csrc/ and nanobind's own sources, nothing else. Metadata is in pyproject.toml.

FASTPRIO_DEBUG=1                          unoptimised, with debug information
FASTPRIO_SANITIZE=address,undefined       or thread: instrumented; run Python with the sanitizer preloaded
"""

import os
from pathlib import Path

import nanobind
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

NANOBIND = Path(nanobind.source_dir()).parent
DEBUG = os.environ.get("FASTPRIO_DEBUG", "0") == "1"
SANITIZE = os.environ.get("FASTPRIO_SANITIZE", "")

# No -march: the hot loops are compiled once for each instruction set and chosen at run time.
compile_args = ["-std=c++20", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off", "-pthread"]
compile_args += ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
link_args = ["-pthread"]
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
    link_args += [f"-fsanitize={SANITIZE}"]


class WithExamples(build_py):
    """Copies the files that ``fastprio examples`` runs into an installation; one of the sources has them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "fastprio", "systems")
            self.mkpath(str(target))
            for path in Path("examples/systems").glob("*.py"):
                self.copy_file(str(path), str(target / path.name))


setup(
    cmdclass={"build_py": WithExamples},
    ext_modules=[
        Extension(
            "fastprio._core",
            sources=[f"csrc/{name}.cpp" for name in ("bind", "sum_tree", "schemes", "kernels", "threads", "nanobind")],
            depends=[str(path) for path in Path("csrc").glob("*.h")],
            include_dirs=["csrc", *(str(NANOBIND / part) for part in ("src", "include", "ext/robin_map/include"))],
            define_macros=[] if DEBUG else [("NDEBUG", "1"), ("NB_COMPACT_ASSERTIONS", "1")],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            language="c++",
        )
    ],
)
