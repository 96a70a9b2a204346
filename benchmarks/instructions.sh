#!/usr/bin/env bash
# Counts the instructions of a draw and of an update under callgrind and compares them with the record: instructions.sh
# [--record]. Unlike times, counts are the same on a busy machine. valgrind knows no AVX-512, so AVX2 and baseline.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
compiler=${CXX:-g++}
"$compiler" -std=c++20 -O3 -g0 -fno-strict-aliasing -ffp-contract=off -Icsrc \
  benchmarks/workload.cpp csrc/sum_tree.cpp csrc/schemes.cpp csrc/kernels.cpp csrc/threads.cpp -o "$build/workload"
for isa in avx2 baseline; do
  for work in draws updates; do
    status=0
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect="$work" \
      "$build/workload" "$isa" >"$build/answer" 2>"$build/log" || status=$?
    [ "$status" = 2 ] && continue
    [ "$status" = 0 ] || { cat "$build/log"; exit 1; }
    echo "$isa $work $(sed -n 's/.*Collected : //p' "$build/log")" >>"$build/counts"
    cat "$build/answer" >>"$build/answers"
  done
done
[ "$(sort -u "$build/answers" | wc -l)" = 1 ] || { echo "the runs differ in their results"; exit 1; }
python3 - "$(basename "$compiler") $("$compiler" -dumpversion | cut -d. -f1)" "$build/counts" "${1:-}" <<'PYTHON'
import json
import sys
from pathlib import Path

compiler, counts, option = sys.argv[1:]
path = Path("benchmarks/records/instructions.json")
records = json.loads(path.read_text()) if path.exists() else {}
new = {}
for isa, work, count in (line.split() for line in Path(counts).read_text().splitlines()):
    new.setdefault(isa, {})[work] = round(int(count) / 102_400, 1)
grown = False
for isa, works in new.items():
    for work, count in works.items():
        old = records.get(compiler, {}).get(isa, {}).get(work)
        grown |= old is not None and count > 1.05 * old
        print(f"{compiler}, {isa}, {work}: {count} instructions an index, the record is {old}")
if option == "--record":
    path.write_text(json.dumps({**records, compiler: new}, indent=2, sort_keys=True) + "\n")
elif compiler not in records:
    print(f"{compiler} is not in {path}; --record adds it")
elif grown:
    sys.exit("a count has grown by more than 5 %; if that is right, --record writes the new ones")
PYTHON
