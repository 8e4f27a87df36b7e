"""Writes the results down: JSON with everything, Markdown for people, and the picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catalogue import CEILING, CEILING_LARGE, FLAT, NEAREST, OURS, READ, SOFTKIN
from plots import plot_line
from result_files import dated, write_results


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write `scorer_<machine>_<date>` .json, .md and, with the linearity part, .png."""
    picture = dated("scorer", results, out).with_suffix(".png")
    write_results("scorer", results, _markdown(results, picture.name), out)
    if "line" in results:
        plot_line(results["line"], picture)


def _markdown(results: dict[str, Any], picture: str) -> Iterable[str]:
    yield from _machine(results)
    for case in results.get("cases", []):
        yield from _timings(case)
        yield from _faster(case)
    if "placement" in results:
        yield from _placement(results["placement"])
    if "line" in results:
        yield from _linearity(results, picture)
    if "memory" in results:
        yield from _memory(results["memory"])
    if "cancellation" in results:
        yield from _cancellation(results["cancellation"])
    if "condensed" in results:
        yield from _condensed(results["condensed"])
    if "classes" in results:
        yield from _many_classes(results["classes"])
    if "after" in results:
        yield from _after_masses(results["after"])


def table(head: list[str], rows: Iterable[list[Any]]) -> Iterable[str]:
    """A Markdown table."""
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def _machine(results: dict[str, Any]) -> Iterable[str]:
    m = results["machine"]
    yield f"# Scorer, {m['date']}"
    yield ""
    instructions = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in m["instructions"].items())
    caches = ", ".join(f"{name} {size}" for name, size in m["caches"].items())
    yield f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB; {caches} (as the first core sees them)."
    yield f"Instructions: {instructions}."
    if m["gpu"]:
        yield f"GPU: {m['gpu']}."
    yield f"Python {m['python']}, " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + "."
    yield ""
    ran: dict[str, list[str]] = {}
    for case in results.get("cases", []):
        for name, device in case["devices"].items():
            ran.setdefault(device, [])
            ran[device] += [name] if name not in ran[device] else []
    if len(ran) == 1:
        yield f"Every candidate ran on: {next(iter(ran))}."
    else:
        yield from (f"Ran on {device}: {'; '.join(names)}." for device, names in ran.items())
    yield from (f"\nLeft out: {name}: {why}." for name, why in results["left_out"].items())
    yield ""
    yield "One process per candidate, interleaved rounds in random order, medians. Ratios are medians over rounds of"
    yield f"the ratio within a round. Cosine, T = {results['temperature']}. Resident: after load and the first calls,"
    yield "with the libraries, less that of the process before."
    if m["gpu"]:
        yield "The MatMul is that of torch (cuBLAS, TF32 off); times include the copies to the GPU and back."
        yield "GPU MB: after the first calls, with the context that CUDA keeps for each process."
    else:
        yield "The MatMul has a session like the scorer's, in pages of 4 kB as onnxruntime takes them, or of 2 MB."
    yield ""
    yield "Seconds per part: " + ", ".join(f"{part} {seconds}" for part, seconds in results["seconds"].items()) + "."


def _timings(case: dict[str, Any]) -> Iterable[str]:
    batches = case["timings"]
    yield f"\n## {case['title']} ({case['bank_mb']} MB)"
    first = _first(batches)
    on_gpu = any(memory.get("gpu_mb") for memory in case["memory"].values())
    head = ["candidate", *(h for b in batches for h in (f"batch {b}: ms", "ratio to MatMul"))]
    rows = []
    for name in first:
        row = [name]
        for timings in batches.values():
            row += [f"{timings[name]['milliseconds']:.2f}", _ratio(timings[name], "over_ceiling")]
        memory = case["memory"][name]
        rows.append([*row, f"{memory['resident_mb']:.0f}", *([f"{memory['gpu_mb']:.0f}"] if on_gpu else [])])
    yield from table([*head, "resident MB", *(["GPU MB"] if on_gpu else [])], rows)
    if first:
        yield ""
        yield "Rounds: " + ", ".join(f"{_first(t)['rounds']} at batch {b}" for b, t in batches.items()) + "."
    yield from (f"\nNot run: {name}: {why}" for name, why in case["failed"].items())
    yield from (f"\nLeft out: {name}: {why}." for name, why in case["left_out"].items())


def _first(found: dict[str, Any]) -> Any:
    return next(iter(found.values()))


def _ratio(timing: dict[str, Any], key: str) -> str:
    return f"{timing[key]:.2f}" if key in timing else "-"


def _faster(case: dict[str, Any]) -> Iterable[str]:
    batches = case["timings"]
    names = [n for n in _first(batches) if n not in (*OURS, CEILING, CEILING_LARGE, READ)]
    if SOFTKIN not in _first(batches):
        return
    yield ""
    yield "How many times faster the scorer is:"
    rows = [[f"{SOFTKIN} than {n}", *(_ratio(t[n], "over_softkin") for t in batches.values())] for n in names]
    if FLAT in names:
        rows.append([f"{NEAREST} than {FLAT}", *(_ratio(t[FLAT], "over_nearest") for t in batches.values())])
    yield from table(["", *(f"batch {b}" for b in batches)], rows)


def _placement(placement: dict[str, Any]) -> Iterable[str]:
    yield "\n## Where onnxruntime puts the nodes"
    rows = [
        [name, provider, found["nodes"], ", ".join(f"{op} {n}" for op, n in found["operators"].items())]
        for name, providers in placement.items()
        for provider, found in providers.items()
    ]
    yield from table(["candidate", "provider", "nodes", "operators"], rows)


def _linearity(results: dict[str, Any], picture: str) -> Iterable[str]:
    sizes = ", ".join(f"{case['rows']:,}" for case in results["line"])
    yield "\n## Time against bank size (128 wide, 10 classes)"
    yield f"\n![time against bank size]({picture})"
    yield f"\nLeast squares over the medians at {sizes} rows: t = a + b N."
    rows = [
        [batch, name, f"{fit['a_ms']:.2f}", f"{fit['b_ns']:.2f}", f"{fit['r2']:.4f}"]
        for batch, fits in results["fits"].items()
        for name, fit in fits.items()
    ]
    yield from table(["batch", "candidate", "a, ms", "b, ns per row", "R²"], rows)


def _memory(memory: dict[str, Any]) -> Iterable[str]:
    yield "\n## Memory"
    yield ""
    yield "Each line is measured in processes of its own, less the same process with a bank of 64 rows. The aim:"
    yield "after load at most 1.1 times the bank file. The peak of the load counts pages of the file that are only"
    yield "mapped, which the kernel may take back; the column after it does not. The last two columns: what calls of"
    yield f"{memory['batch']} rows and fewer need more, without and with the nearest {memory['k']}. The session keeps"
    yield "it; it must not depend on the number of rows in the bank."
    head = ["bank", "precision", "file MB", "after load: MB", "of the file"]
    head += ["peak of the load: MB", "of the file", "without mapped pages"]
    rows = []
    for r in memory["loads"]:
        row = [r["title"], r["precision"], r["file_mb"], r["resident_mb"], f"{r['resident_share']:.2f}"]
        row += [r["load_peak_mb"], f"{r['load_peak_share']:.2f}", f"{r['own_peak_share']:.2f}"]
        rows.append([*row, r["calls_extra_mb"], r["nearest_extra_mb"]])
    yield from table([*head, "calls more: MB", f"with top-{memory['k']}: MB"], rows)
    yield ""
    yield "A second scorer of the same files in the same process, as shares of the bank file; pages that several map"
    yield "count once. Prepacked, as the service runs: each session has its own copy of the bank, in the order of the"
    yield "matrix product. Mapped: with `session.disable_prepacking`, which only this measurement sets; times are"
    yield "multiples of those of the prepacked one."
    rows = []
    for r in memory["second"]:
        packed = [r["title"], r["precision"], "prepacked"]
        rows.append([*packed, *(f"{r[k]['prepacked']:.2f}" for k in ("first_share", "added_share")), *["1"] * 3])
        slower = [f"{v:.2f}" for v in r["mapped_times_slower"].values()]
        rows.append(["", "", "mapped", *(f"{r[k]['mapped']:.2f}" for k in ("first_share", "added_share")), *slower])
    times = [f"time at batch {batch}" for batch in memory["second"][0]["mapped_times_slower"]]
    yield from table(["bank", "precision", "", "the first", "the second adds", *times], rows)


def _cancellation(c: dict[str, Any]) -> Iterable[str]:
    yield "\n## Cancellation"
    yield ""
    yield f"{c['title']} on {c['device']}, batch {c['batch']}, stopped at a random moment;"
    yield f"{c['stopped']} of {c['tries']} calls were still running. From `cancel()` to the return of `run()`:"
    head = ["median ms", "max ms", "one chunk, ms", "chunks", "the whole call, ms"]
    yield from table(head, [[c["median_ms"], c["max_ms"], c["chunk_ms"], c["chunks"], c["whole_ms"]]])


def _condensed(c: dict[str, Any]) -> Iterable[str]:
    yield "\n## Condensed bank"
    layers = f"{c['layers']} layers x {c['dim']} in one scorer"
    yield f"\n{c['condensed']:,} weighted rows in the place of {c['whole']:,}, {layers}."
    rows = [
        [batch, f"{t['whole_ms']:.2f}", f"{t['condensed_ms']:.2f}", f"{t['times_faster']:.1f}"]
        for batch, t in c["timings"].items()
    ]
    yield from table(["batch", f"{c['whole']:,} rows: ms", f"{c['condensed']:,} rows: ms", "times faster"], rows)


def _many_classes(cases: list[dict[str, Any]]) -> Iterable[str]:
    yield "\n## Many classes, few rows"
    yield "\nMilliseconds, and in brackets times over a MatMul of the rows alone, without padding."
    batches = list(next(iter(cases[0]["timings"].values())))
    rows = [
        [case["title"], name, *(f"{found[b]['ms']:.2f} ({found[b]['ratio']:.2f})" for b in batches)]
        for case in cases
        for name, found in case["timings"].items()
    ]
    yield from table(["bank", "candidate", *(f"batch {b}" for b in batches)], rows)


def _after_masses(cases: list[dict[str, Any]]) -> Iterable[str]:
    yield "\n## After the masses"
    yield "\nNonconformity, p-values of every class, credibility and confidence, of three layers: milliseconds a call."
    rows = [[case["form"], f"{case['classes']:,}", *(f"{ms:.2f}" for ms in case["ms"].values())] for case in cases]
    yield from table(["form", "classes", *(f"batch {b}" for b in cases[0]["ms"])], rows)
