"""Makes the tables of README.md, beside this file, from `records/*.json`: `python benchmarks/table.py [--check]`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; NAME is a key of TABLES. With --check nothing is written,
and the exit status is 1 if a table is not what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastprio.bench.present import contender_rows, number, peer_rows, skipped_lines, span

HERE = Path(__file__).parent
Record = dict[str, Any]


def read(name: str) -> Record:
    """A record, {} where there is none yet."""
    path = HERE / "records" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def markdown(rows: list[list[str]]) -> str:
    """A table, the first row its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    ruled = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruled, *body))


def made(name: str, record: Record) -> str:
    """Where, with what and when a record was made."""
    versions = ", ".join(f"{what} {version}" for what, version in record["versions"].items())
    date = record["date"].partition("T")[0]
    return f"`records/{name}.json`: `{record['command']}`, {date}; {record['machine']}; {versions}."


def tests(record: Record, pattern: str) -> dict[tuple[str, ...], Record]:
    """Of a record of pytest-benchmark, what matches: groups of the match -> entry."""
    found = ((re.fullmatch(pattern, name), entry) for name, entry in record.get("benchmarks", {}).items())
    return {match.groups(): entry for match, entry in found if match}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def reach() -> str:
    """What the project asks of itself, each line with the record that says it."""
    rows = [["what", "measured"]]

    def ratios(record: Record, name: str) -> str:
        return ", ".join(f"{found[name]['ratio']:.2f} (N = {int(n):,})" for n, found in record["results"].items())

    if bench := read("bench"):
        calls = bench["calls"].items()
        for part in ("sample", "update"):
            cells = (
                f"{number(found['tree'][part]['ns_per_index'])} beside {number(bench['limit'][n])} (N = {int(n):,})"
                for n, found in calls
            )
            what = {"sample": "SumTree.sample into arrays", "update": "SumTree.update"}[part]
            rows.append([f"{what}, ns an index beside a bare random read", ", ".join(cells)])
        fixed = bench["fixed_call_ns"]
        rows.append(["fixed cost of a call, sample / update", f"{fixed['sample']:.0f} / {fixed['update']:.0f} ns"])
        for name, what in (
            (
                "draw+update",
                "an epoch of lists drawn and the tree updated for every batch, over torch's uniform epoch",
            ),
            ("draw+store", "the same with ScoreStore.update, policy 'loss'"),
            ("draw+record", "the same through the journal, sampler.record"),
            ("single", "PrioritySampler one int at a time behind torch's BatchSampler, over torch's uniform epoch"),
        ):
            rows.append([what, ratios(bench, name)])
        held = bench["bytes_an_example"]
        rows.append(["bytes an example, tree / store of policy 'loss'", f"{held['tree']:.2f} / {held['store']:.2f}"])
    if bench := read("bench32"):
        rows.append(
            [
                "an epoch drawn, the tree updated, in batches of 32, over torch's uniform epoch",
                ratios(bench, "draw+update"),
            ]
        )
    for (state, n), entry in tests(read("sampler"), r"test_first_batch\[(\w+)-N(\d+)\]").items():
        rows.append([f"first batch after iter(), N = {int(n):,}, {state} store", span(entry["seconds"]["median"])])
    for (setting,), entry in tests(read("loader"), r"test_prioritized_training_beside_uniform\[(\w+)\]").items():
        low, high = entry["interval"]
        rows.append(
            [
                f"training, {setting}: sampler and store, share of the main thread's time",
                percent(entry["choosing_share"]["prioritized"]),
            ]
        )
        rows.append(
            [
                f"training, {setting}: prioritized over uniform epoch",
                f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f}, {len(entry['pairs'])} pairs)",
            ]
        )
    return markdown(rows)


def epochs() -> str:
    """Whole epochs, from `fastprio bench`."""
    if not (bench := read("bench")):
        return "No record yet."
    return markdown(contender_rows(bench["results"])) + "\n\n" + made("bench", bench)


def calls() -> str:
    """Peers call by call, from `fastprio bench`."""
    if not (bench := read("bench")):
        return "No record yet."
    skipped = [f"\n{line[0].upper()}{line[1:]}." for line in skipped_lines(bench["skipped"])]
    return "\n".join([markdown(peer_rows(bench["calls"], bench["limit"])), *skipped])


def tree() -> str:
    """The tree by batch size and scheme, ns an index, from bench_tree.py."""
    if not (record := read("tree")):
        return "No record yet."
    found = tests(record, r"test_(sample|update|scheme)\[N(\d+)-(?:batch)?(\w+)\]")
    ns = list(dict.fromkeys(n for _, n, _ in found))
    rows = [["ns an index", *(f"N = {int(n):,}" for n in ns)]]
    titles = {"sample": "sample, stratified, batch {}", "update": "update, batch {}", "scheme": "sample, {}, batch 256"}
    for kind, what in dict.fromkeys((kind, what) for kind, _, what in found):
        cells = [number(found[kind, n, what]["ns_per_index"]) if (kind, n, what) in found else "-" for n in ns]
        rows.append([titles[kind].format(what), *cells])
    reads = tests(record, r"test_bare_random_read\[N(\d+)\]")
    rows.append(["bare random read", *(number(reads[n,]["random_read_ns"]) if (n,) in reads else "-" for n in ns)])
    return markdown(rows) + "\n\n" + made("tree", record)


def first() -> str:
    """The first batch, from bench_sampler.py."""
    found = tests(record := read("sampler"), r"test_first_batch\[(\w+)-N(\d+)\]")
    if not found:
        return "No record yet."
    ns = list(dict.fromkeys(n for _, n in found))
    rows = [["first batch after iter()", *(f"N = {int(n):,}" for n in ns)]]
    for state, what in (("fresh", "nothing scored yet"), ("scored", "every example scored")):
        rows.append([what, *(span(found[state, n]["seconds"]["median"]) if (state, n) in found else "-" for n in ns)])
    return markdown(rows) + "\n\n" + made("sampler", record)


def loader() -> str:
    """Real training, from bench_loader.py."""
    found = tests(record := read("loader"), r"test_prioritized_training_beside_uniform\[(\w+)\]")
    if not found:
        return "No record yet."
    rows = [["", "uniform epoch", "prioritized", "ratio (95 % interval)", "choosing: share", "us a batch", "uniform's"]]
    for (setting,), entry in found.items():
        (low, high), seconds, spent = entry["interval"], entry["epoch_seconds"], entry["choosing_us_per_batch"]
        rows.append(
            [
                f"{setting}: {entry['examples']:,} examples, batches of {entry['batch']}, {entry['workers']} workers",
                span(seconds["uniform"]),
                span(seconds["prioritized"]),
                f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f})",
                percent(entry["choosing_share"]["prioritized"]),
                number(spent["prioritized"]),
                f"{percent(entry['choosing_share']['uniform'])}, {number(spent['uniform'])}",
            ]
        )
    pairs = statistics.median(len(entry["pairs"]) for entry in found.values())
    return markdown(rows) + f"\n\n{pairs:.0f} pairs of epochs each. " + made("loader", record)


SCALE = {
    "numpy copies as many float32, one thread": "copy",
    "the same to a new array, once": "copy_fresh_once",
    "fill of a new tree from an array, once": "fill_fresh_once",
    "fill of a new tree where one has just gone, once": "fill_fresh",
    "fill from an array": "fill_*",
    "fill from a number": "fill_scalar_*",
    "refit": "refit_*",
    "find, a million at once": "find_1e6_*",
    "sample, a million iid at once": "sample_1e6_iid_at_once_*",
    "sample, a million stratified by 256 at once": "sample_1e6_stratified_at_once_*",
    "sample, a million in batches of 256": "sample_1e6_in_batches",
    "update, a million in batches of 256, once": "update_1e6_in_batches",
    "first batch after iter(), policy 'loss', nothing scored yet, once": "first_batch_fresh",
    "first batch after iter(), policy 'loss', every example scored, once": "first_batch_scored_once",
    "scoring every example, a million an update, once": "update_all_once",
    "save, once": "save",
    "load, once": "load",
}


def scale() -> str:
    """Whole-epoch work, from bench_scale.py."""
    record = read("scale")
    if not record:
        return "No record yet."
    sizes = record["sizes"]

    def cell(found: Record, key: str) -> str:
        keys = [key.replace("*", count) for count in ("one_thread", "all_threads")] if "*" in key else [key]
        return " / ".join(span(found[key]) for key in keys)

    rows = [[f"one thread / {record['threads']}", *(f"N = {float(n):,.0f}" for n in sizes)]]
    rows += [[what, *(cell(found, key) for found in sizes.values())] for what, key in SCALE.items()]
    rows.append(["a bare random read, ns", *(number(found["random_read_ns"]) for found in sizes.values())])
    for what, key in (("scoring and saving", "saved"), ("loading", "loaded")):
        peaks = ((float(n), found[f"peak_bytes_an_example_{key}"]) for n, found in sizes.items())
        rows.append([f"the most memory, {what}, GB", *(f"{n * peak / 1e9:.2f}" for n, peak in peaks)])
    return markdown(rows) + "\n\n" + made("scale", record)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table for table in (reach, epochs, calls, tree, first, loader, scale)
}


def filled(text: str) -> str:
    """README with every table as the records have it. ValueError if a table has no place, or a place no table."""
    places = re.findall(r"<!-- (\w+) -->\n", text)
    if sorted(places) != sorted(TABLES):
        raise ValueError(f"README.md has places for {sorted(places)}: expected one each for {sorted(TABLES)}")
    for name, table in TABLES.items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md: <!-- {name} --> without <!-- /{name} -->")
        text = pattern.sub(lambda _, n=name, t=table: f"<!-- {n} -->\n{t()}\n<!-- /{n} -->", text)
    return text


def main() -> int:
    """Writes, or checks. Returns the exit status."""
    parser = argparse.ArgumentParser(description="The tables of README.md, from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if README.md differs")
    options = parser.parse_args()
    path = HERE / "README.md"
    text = path.read_text()
    new = filled(text)
    if options.check:
        if new != text:
            print("benchmarks/README.md differs from the records: python benchmarks/table.py", file=sys.stderr)
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
