"""What was measured, as Markdown tables of ratios."""

import statistics

from runs.bench.models import REFERENCE, Row


def median(row: Row) -> float:
    """Of a row's timings, in seconds."""
    return statistics.median(row["seconds"])


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def megabytes(size: float | None) -> str:
    """Bytes in words; - where they are not known."""
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def markdown(rows: list[Row]) -> str:
    """Every part that was measured, as tables of ratios."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    blocks = []
    trained = parts.get("training", [])
    for model in dict.fromkeys(row["model"] for row in trained):
        mine = {(row["variant"], row["tokens"]): row for row in trained if row["model"] == model}
        names, lengths = (list(dict.fromkeys(key[i] for key in mine)) for i in (0, 1))
        head = [
            f"{model}, a training step",
            *(f"{t} tokens" for t in lengths),
            *(f"saved at {t}" for t in lengths),
        ]
        lines = []
        for name in names:
            found = [mine.get((name, t)) for t in lengths]
            times = [
                f"{median(r) / median(mine[REFERENCE, r['tokens']]):.2f} ({median(r):.2f} s)" if r else "-"
                for r in found
            ]
            lines.append([name, *times, *(megabytes(r["saved"] if r else None) for r in found)])
        blocks.append(f"Time against {REFERENCE}; what the forward pass keeps.\n\n" + table(head, lines))
    if "memory" in parts:
        lines = [[r["variant"], str(r["tokens"]), megabytes(r["bytes"])] for r in parts["memory"]]
        blocks.append(table(["peak memory of a training process", "tokens", "memory"], lines))
    if "files" in parts:
        lines = [[r["variant"], f"{r['bytes']:,}", f"{median(r):.2f} s"] for r in parts["files"]]
        blocks.append(table(["an adapter on disk (RoBERTa-base)", "bytes", "time to load"], lines))
    for part in ("start", "epoch"):
        if part in parts:
            first = median(parts[part][0])
            lines = [[r["variant"], f"{median(r):.1f} s", f"{median(r) / first:.2f}"] for r in parts[part]]
            title = {"start": "the harness", "epoch": "an epoch on RTE, MiniLM, VeRA"}[part]
            blocks.append(table([title, "time", "ratio"], lines))
            if part == "epoch":
                blocks[-1] += f"\n\nLosses of the two differ by at most {parts[part][0]['losses_apart']:.1e}."
    decoded = parts.get("decoding", [])
    for model in dict.fromkeys(row["model"] for row in decoded):
        mine_ = [row for row in decoded if row["model"] == model]
        lines = [[r["variant"], f"{median(r):.1f} s", f"{median(r) / median(mine_[0]):.2f}"] for r in mine_]
        blocks.append(
            table(
                [f"{model}: {mine_[0]['items']} MRs, 10 beams, {mine_[0]['steps']} tokens", "time", "ratio"],
                lines,
            )
        )
    served = parts.get("serving", [])
    if served:
        base = {(r["tokens"], r["resident"]): median(r) for r in served if r["variant"] == "base model"}
        lines = [
            [
                r["variant"],
                str(r["tokens"]),
                f"{median(r) * 1e3:,.0f} ms",
                f"{median(r) / base[r['tokens'], r['resident']]:.2f}",
            ]
            for r in served
        ]
        blocks.append(
            table(["a batch of 64 requests, RoBERTa-base", "tokens each", "time", "against the base"], lines)
        )
        blocks[-1] += "".join(f"\n\n{r['variant']}: {megabytes(r['bytes'])}." for r in parts["resident"])
    return "\n\n".join(blocks)
