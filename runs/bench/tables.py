"""The measurements as Markdown tables of ratios."""

import statistics

from runs.bench.models import REFERENCE, SHAPES, Row


def median(row: Row) -> float:
    """The median of a row's timings, in seconds."""
    return statistics.median(row["seconds"])


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def megabytes(size: float | None) -> str:
    """Bytes as text, "-" for None."""
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def markdown(rows: list[Row]) -> str:
    """The tables of all parts in the rows."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    blocks = _training(parts.get("training", []))
    if "memory" in parts:
        lines = [[r["variant"], str(r["tokens"]), megabytes(r["bytes"])] for r in parts["memory"]]
        blocks.append(table(["peak memory of a training process", "tokens", "memory"], lines))
    if "files" in parts:
        lines = [[r["variant"], f"{r['bytes']:,}", f"{median(r):.2f} s"] for r in parts["files"]]
        blocks.append(table(["an adapter on disk (RoBERTa-base)", "bytes", "time to load"], lines))
    if "start" in parts:
        blocks.append(_ratios("the harness", parts["start"]))
    if "epoch" in parts:
        apart = parts["epoch"][0]["losses_apart"]
        losses = f"Losses of the two differ by at most {apart:.1e}."
        blocks.append(f"{_ratios('an epoch on RTE, MiniLM, VeRA', parts['epoch'])}\n\n{losses}")
    if "contention" in parts:
        blocks.append(_ratios("an epoch of full fine-tuning, MiniLM on reviews", parts["contention"]))
    decoded = parts.get("decoding", [])
    for model in dict.fromkeys(row["model"] for row in decoded):
        of_model = [row for row in decoded if row["model"] == model]
        title = f"{model}: {of_model[0]['items']} MRs, 10 beams, {of_model[0]['steps']} tokens"
        blocks.append(_ratios(title, of_model))
    if "serving" in parts:
        blocks.append(_serving(parts["serving"], parts["resident"]))
        files = [[r["variant"], f"{r['bytes']:,}", f"{r['parameters']:,}"] for r in parts["adapter file"]]
        blocks.append(table([f"an adapter's file ({SHAPES[0].label})", "bytes", "parameters"], files))
    return "\n\n".join(blocks)


def _training(rows: list[Row]) -> list[str]:
    """A table for each model: the time of a step against REFERENCE's, and what the forward pass keeps."""
    blocks = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = {(row["variant"], row["tokens"]): row for row in rows if row["model"] == model}
        names, lengths = (list(dict.fromkeys(key[i] for key in of_model)) for i in (0, 1))
        head = [f"{model}, a training step", *(f"{t} tokens" for t in lengths)]
        head += [f"kept for the backward pass at {t}" for t in lengths]
        lines = []
        for name in names:
            of_name = [of_model[name, t] for t in lengths]
            ratios = [median(r) / median(of_model[REFERENCE, r["tokens"]]) for r in of_name]
            times = [f"{x:.2f} ({median(r):.2f} s)" for x, r in zip(ratios, of_name, strict=True)]
            lines.append([name, *times, *(megabytes(r["saved"]) for r in of_name)])
        blocks.append(f"Time against {REFERENCE}; what the forward pass keeps.\n\n" + table(head, lines))
    return blocks


def _ratios(title: str, rows: list[Row]) -> str:
    """Times, and their ratios to the first."""
    first = median(rows[0])
    lines = [[r["variant"], f"{median(r):.1f} s", f"{median(r) / first:.2f}"] for r in rows]
    return table([title, "time", "ratio"], lines)


def _serving(rows: list[Row], resident: list[Row]) -> str:
    """Times against the base model's at the same length, and the memory of the resident adapters."""
    base = {(r["tokens"], r["resident"]): median(r) for r in rows if r["variant"] == "base model"}
    lines = []
    for r in rows:
        time, ratio = f"{median(r) * 1e3:,.0f} ms", median(r) / base[r["tokens"], r["resident"]]
        lines.append([r["variant"], str(r["tokens"]), time, f"{ratio:.2f}"])
    head = ["a batch of 64 requests, RoBERTa-base", "tokens each", "time", "against the base"]
    sizes = "".join(f"\n\n{r['variant']}: {megabytes(r['bytes'])}." for r in resident)
    return table(head, lines) + sizes
