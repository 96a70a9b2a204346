"""Makes the tables of the documents: `python benchmarks/table.py [--check]`.

They come from `records/*.json`. A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; NAME is a function of
TABLES. With --check nothing is written, and the exit status is 1 if a table is not what the records say.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from guard_tables import guard_ies, guard_rates, guard_signals, guard_variants
from record import HERE, Record, made, markdown, read
from study_tables import study_claims, study_first, study_short
from systems_tables import systems, systems_first

from fastprio.bench.present import contender_rows, number, peer_rows, skipped_lines, span


def tests(record: Record, pattern: str) -> dict[tuple[str, ...], Record]:
    """Of a record of pytest-benchmark, what matches: groups of the match -> entry."""
    found = ((re.fullmatch(pattern, name), entry) for name, entry in record.get("benchmarks", {}).items())
    return {match.groups(): entry for match, entry in found if match}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def by_size(cells: dict[str, str]) -> str:
    """Number of examples -> what was found there, as one cell."""
    return ", ".join(f"{cell} (N = {int(n):,})" for n, cell in cells.items())


def reach() -> str:
    """What the project asks of itself, and what was measured."""
    rows = [["what", "asked", "measured"]]

    def ratios(record: Record, name: str) -> str:
        return by_size({n: f"{found[name]['ratio']:.2f}" for n, found in record["results"].items()})

    if sizes := read("scale").get("sizes"):
        for part, asked in (("sample", "20 / 30 / 45 / 80"), ("update", "25 / 35 / 55 / 100")):
            cells = {
                str(int(float(n))): f"{1e3 * found[f'{part}_1e6_in_batches']:.1f} beside {found['random_read_ns']:.1f}"
                for n, found in sizes.items()
            }
            what = f"SumTree.{part} in batches of 256, ns an index, beside a bare random read"
            rows.append([what, f"{asked} at 1e6 / 1e7 / 1e8 / 1e9", by_size(cells)])
        rows.append(["fill of 1e8", "250 ms", span(sizes["1e8"]["fill_one_thread"])])
        peak = sizes["1e9"]["peak_bytes_an_example_saved"]
        rows.append(["1e9 examples scored and saved, memory", "9.5 GB", f"{peak:.2f} GB"])
    if bench := read("bench"):
        fixed = bench["fixed_call_ns"]
        rows.append(
            ["fixed cost of a call, sample / update", "800 ns", "{sample:.0f} / {update:.0f} ns".format(**fixed)]
        )
        for name, what, asked in (
            ("draw+update", "lists drawn and the tree updated for every batch", "0.75 / 0.6 / 0.6 at 1e5 / 1e6 / 1e7"),
            ("draw+store", "the same with ScoreStore.update, policy 'loss'", "1.0"),
            ("draw+record", "the same through the journal, sampler.record", ""),
            ("single", "PrioritySampler one int at a time behind torch's BatchSampler", "0.8 at 1e6"),
        ):
            rows.append([f"an epoch over torch's uniform one: {what}", asked, ratios(bench, name)])
        held = bench["bytes_an_example"]
        rows.append(
            ["bytes an example, tree / store of policy 'loss'", "6 / ", "{tree:.2f} / {store:.2f}".format(**held)]
        )
    if bench := read("bench32"):
        what = "an epoch over torch's uniform one: lists drawn, the tree updated, in batches of 32"
        rows.append([what, "1.5", ratios(bench, "draw+update")])
    for (state, n), entry in tests(read("sampler"), r"test_first_batch\[(\w+)-N(\d+)\]").items():
        asked = "50 ms" if n == str(10**8) else ""
        rows.append(
            [f"first batch after iter(), N = {int(n):,}, {state} store", asked, span(entry["seconds"]["median"])]
        )
    for (setting,), entry in tests(read("loader"), r"test_prioritized_training_beside_uniform\[(\w+)\]").items():
        low, high = entry["interval"]
        share = percent(entry["choosing_share"]["prioritized"])
        ratio = f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f}, {len(entry['pairs'])} pairs)"
        rows.append([f"training, {setting}: sampler and store, share of the main thread's time", "1 %", share])
        rows.append([f"training, {setting}: prioritized over uniform epoch", "below 1.03", ratio])
    for (setting,), entry in tests(read("ffcv"), r"test_prioritized_ffcv_beside_random_order\[(\w+)\]").items():
        low, high = entry["interval"]
        ratio = f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f}, {len(entry['pairs'])} pairs)"
        rows.append([f"training from FFCV, {setting}: prioritized over OrderOption.RANDOM", "below 1.03", ratio])
    return markdown(rows)


def parts() -> str:
    """Where a batch's time goes, from parts.py."""
    record = read("parts")
    if not record:
        return "No record yet."
    found = record["us_a_batch"]
    rows = [["us", *(f"batch of {batch}" for batch in found)]]
    rows += [[name, *(f"{found[batch][name]:.2f}" for batch in found)] for name in found["256"]]
    return markdown(rows) + "\n\n" + made("parts", record)


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


def training(name: str, pattern: str, uniform: str) -> str:
    """Epochs of training beside each other, ``uniform`` ones and prioritized ones."""
    found = tests(record := read(name), pattern)
    if not found:
        return "No record yet."
    rows = [
        ["", f"{uniform} epoch", "prioritized", "ratio (95 % interval)", "choosing: share", "us a batch", "uniform's"]
    ]
    for (setting,), entry in found.items():
        (low, high), seconds, spent = entry["interval"], entry["epoch_seconds"], entry["choosing_us_per_batch"]
        reading = f"{entry['workers']} workers" if "workers" in entry else f"{entry['batches_ahead']} batches ahead"
        rows.append(
            [
                f"{setting}: {entry['examples']:,} examples, batches of {entry['batch']}, {reading}",
                span(seconds["uniform"]),
                span(seconds["prioritized"]),
                f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f})",
                percent(entry["choosing_share"]["prioritized"]),
                number(spent["prioritized"]),
                f"{percent(entry['choosing_share']['uniform'])}, {number(spent['uniform'])}",
            ]
        )
    pairs = statistics.median(len(entry["pairs"]) for entry in found.values())
    return markdown(rows) + f"\n\n{pairs:.0f} pairs of epochs each. " + made(name, record)


def loader() -> str:
    """Real training, from bench_loader.py."""
    return training("loader", r"test_prioritized_training_beside_uniform\[(\w+)\]", "uniform")


def ffcv() -> str:
    """The same from FFCV, from bench_ffcv.py."""
    return training("ffcv", r"test_prioritized_ffcv_beside_random_order\[(\w+)\]", "OrderOption.RANDOM")


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


HOP, WIRE = 10e-6, 12.5e9
"""A network on paper: seconds for a message to get through, and bytes a second into a rank (100 Gbit/s)."""
EXAMPLES = (10**6, 10**8, 10**9, 10**10, 10**11)


def on_the_wire(ranks: int, message: int) -> float:
    """Seconds of an all-gather of so many bytes a rank: log2(R) rounds, and everybody's bytes through one wire."""
    return HOP * math.ceil(math.log2(ranks)) + (ranks - 1) * message / WIRE


def messages() -> str:
    """Bytes and time of the collective, on paper."""
    record = read("ranks")
    if not record:
        return "No record yet."
    of_losses = record["header_bytes"] + 4 * record["each"]
    rows = [["ranks", "replicated: sent, received by a rank", "time", "sharded: sent, received", "time"]]
    for ranks in map(int, next(iter(record["replicated"].values()))):
        row = [str(ranks)]
        for message in (of_losses, 24):
            row += [f"{message:,} B, {ranks * message / 1e3:,.1f} kB", f"{1e6 * on_the_wire(ranks, message):,.0f} us"]
        rows.append(row)
    return markdown(rows)


def work() -> str:
    """A rank's own work in a step, measured."""
    record = read("ranks")
    if not record:
        return "No record yet."
    ranks = list(next(iter(record["replicated"].values())))
    rows = [["examples in the store", *(f"{r} ranks" for r in ranks), "sharded, any number"]]
    for size, found in record["replicated"].items():
        cells = [f"{sum(parts.values()) / 1e3:.2f} ms" for parts in found.values()]
        rows.append([f"{float(size):,.0f}", *cells, f"{sum(record['sharded'][size].values()):.0f} us"])
    return markdown(rows) + "\n\n" + made("ranks", record)


def memory() -> str:
    """Bytes of a rank's store."""
    record = read("ranks")
    if not record:
        return "No record yet."
    ranks = [int(r) for r in next(iter(record["replicated"].values()))]
    rows = [["examples", "replicated", *(f"sharded, {r} ranks" for r in ranks)]]
    for n in EXAMPLES:
        rows.append([f"{n:,}", *(store_of(n // r, record["bytes_an_example"]) for r in (1, *ranks))])
    return markdown(rows)


def store_of(examples: int, each: float) -> str:
    """How large a store is."""
    if examples > 1 << 32:
        return "above 2^32"
    size = examples * each
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def unequal() -> str:
    """What unequal shards cost."""
    record = read("ranks")
    if not record:
        return "No record yet."
    rows = [["ranks", "sorted by difficulty", "shuffled"]]
    rows += [[r, f"{f['sorted']:.3f}", f"{f['shuffled']:.4f}"] for r, f in record["inflation"].items()]
    return markdown(rows)


README, FRONT, DOCS = HERE / "README.md", HERE.parent / "README.md", HERE.parent / "docs"


def policies() -> str:
    """Every policy's plan and updates."""
    record = read("policies")
    rows = [["policy", "bytes an example", "plan, ms", "observe, us", "ScoreStore.update, us"]]
    for name, its in record["policies"].items():
        times = number(its["plan_ms"]), number(its["observe_us"]), number(its["update_us"])
        rows.append([f"`{name}`", f"{its['bytes']:g}", *times])
    return f"{markdown(rows)}\n\n{made('policies', record)}"


TABLES: dict[Path, tuple[Callable[[], str], ...]] = {
    README: (reach, parts, epochs, calls, policies, tree, first, loader, ffcv, scale),
    FRONT: (study_first, systems_first),
    DOCS / "scale.md": (messages, work, memory, unequal),
    DOCS / "guard.md": (guard_rates, guard_ies, guard_signals, guard_variants),
    DOCS / "study.md": (study_short, study_claims),
    DOCS / "systems.md": (systems,),
}


def filled(path: Path) -> str:
    """A document with every table as the records have it. ValueError if a table has no place, or a place no table."""
    text, tables = path.read_text(), {table.__name__: table for table in TABLES[path]}
    places = re.findall(r"<!-- (\w+) -->\n", text)
    if sorted(places) != sorted(tables):
        raise ValueError(f"{path.name} has places for {sorted(places)}: expected one each for {sorted(tables)}")
    for name, table in tables.items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{path.name}: <!-- {name} --> without <!-- /{name} -->")
        text = pattern.sub(lambda _, n=name, t=table: f"<!-- {n} -->\n{t()}\n<!-- /{n} -->", text)
    return text


def main() -> int:
    """Writes, or checks. Returns the exit status."""
    parser = argparse.ArgumentParser(description="The tables of the documents, from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a document differs")
    options = parser.parse_args()
    status = 0
    for path in TABLES:
        new = filled(path)
        if not options.check:
            path.write_text(new)
        elif new != path.read_text():
            status = 1
            print(f"{path.name} differs from the records: python benchmarks/table.py", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
