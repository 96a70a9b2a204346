#!/bin/sh
# Runs the Python tests on an extension with the address and undefined-behaviour sanitizers (g++'s), built in a copy of the
# last commit: sanitized.sh [pytest's arguments]. Leaks are not looked for, as Python and torch leave much behind by design;
# tests/cpp/run.sh looks for those of csrc/.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" archive HEAD | tar -x -C "$copy"
cd "$copy"
FASTPRIO_SANITIZE=address,undefined python setup.py -q build_ext --inplace
libraries=""
for library in libasan libubsan libstdc++; do
  libraries="$libraries $(g++ -print-file-name=$library.so)"
done
LD_PRELOAD="$libraries" PYTHONMALLOC=malloc PYTHONPATH="$copy" ASAN_OPTIONS=detect_leaks=0 \
  UBSAN_OPTIONS=print_stacktrace=1 python -m pytest -p no:cacheprovider "$@"
