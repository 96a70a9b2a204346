#!/bin/sh
# Shows which branches the tests take: coverage.sh c++, those of csrc/ by the C++ tests (needs clang and llvm);
# coverage.sh python [pytest's arguments], those of fastprio/ by pytest (needs coverage, from pip).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
case "$1" in
  c++)
    export LLVM_PROFILE_FILE="$build/%p.profraw"
    flags="-std=c++20 -O1 -g -fprofile-instr-generate -fcoverage-mapping -fno-strict-aliasing -ffp-contract=off -pthread"
    for part in sum_tree schemes kernels threads; do
      # shellcheck disable=SC2086  # the flags are words
      clang++ $flags -c "$root/csrc/$part.cpp" -o "$build/$part.o"
    done
    cd "$root/tests/cpp"
    shown=""
    for test in *.cpp; do
      # shellcheck disable=SC2086
      clang++ $flags -I"$root/csrc" "$test" "$build"/*.o -o "$build/${test%.cpp}"
      "$build/${test%.cpp}"
      shown="${shown:+$shown -object }$build/${test%.cpp}"
    done
    llvm-profdata merge -o "$build/merged" "$build"/*.profraw
    # shellcheck disable=SC2086  # the objects are words
    llvm-cov show $shown -instr-profile "$build/merged" -show-branches=count -show-instantiations=0 \
      "$root"/csrc/* | grep -B3 -E 'True: 0|False: 0' || true
    # shellcheck disable=SC2086
    llvm-cov report $shown -instr-profile "$build/merged" -show-branch-summary "$root"/csrc/*
    ;;
  python)
    shift
    cd "$root"
    export COVERAGE_FILE="$build/coverage"
    python -m coverage run -m pytest "$@" || failed=$?
    python -m coverage combine -q
    python -m coverage report
    exit "${failed:-0}"
    ;;
esac
