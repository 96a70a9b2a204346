#!/bin/sh
# Builds and runs the C++ tests: run.sh [sanitizers], for example run.sh address,undefined
# For another machine: CXX=aarch64-linux-gnu-g++ EMULATOR=qemu-aarch64 run.sh
# run.sh thread runs only the tests that start threads.
set -eu
cd "$(dirname "$0")"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags="-std=c++20 -O1 -g -Wall -Wextra -Werror -fno-strict-aliasing -pthread -I../../csrc"
tests=$(ls ./*.cpp)
if [ -n "${1:-}" ]; then
  flags="$flags -fsanitize=$1 -fno-sanitize-recover=all -fno-omit-frame-pointer"
fi
if [ -n "${EMULATOR:-}" ]; then
  flags="$flags -static"  # the emulator has no libraries of that machine
fi
if [ "${1:-}" = thread ]; then
  tests="threads.cpp race.cpp"
fi
for part in sum_tree schemes kernels threads; do
  # shellcheck disable=SC2086  # the flags are words
  ${CXX:-g++} $flags -c "../../csrc/$part.cpp" -o "$build/$part.o"
done
for test in $tests; do
  # shellcheck disable=SC2086
  ${CXX:-g++} $flags "$test" "$build/sum_tree.o" "$build/schemes.o" "$build/kernels.o" "$build/threads.o" -o "$build/test"
  ${EMULATOR:-} "$build/test"
done
