"""Table 1: trained parameters and their memory, by formula."""

from analysis.beside import follows
from analysis.paper import paper
from analysis.render import Table
from analysis.tables.view import View

#: Adapted matrices (query and key of each block) and their width.
SHAPES = {"roberta-base": (24, 768), "roberta-large": (48, 1024), "gpt-3": (192, 12288)}
MODELS = {"roberta-base": "RoBERTa-base", "roberta-large": "RoBERTa-large", "gpt-3": "GPT-3"}


def memory(model: str, rank: int) -> dict[str, int]:
    """Table 1's numbers by formula: the trained parameters of LoRA (2 d r for each adapted matrix) and of
    VeRA (d + r), and the frozen elements of VeRA's shared A and B (2 d r in all), which a seed brings
    back."""
    matrices, width = SHAPES[model]
    return {
        "lora": matrices * 2 * width * rank,
        "vera": matrices * (width + rank),
        "frozen": 2 * width * rank,
    }


def table1(view: View) -> list[Table]:
    """Trained parameters and bytes of LoRA and VeRA on query and key, by formula and as printed. Needs no
    record."""
    kinds = ("LoRA", "LoRA bytes", "VeRA", "VeRA bytes")
    header = ["model", "rank", *(name for kind in kinds for name in (kind, "printed")), "status"]
    rows = []
    for model, rank, *printed in paper()["table1"]["rows"]:
        exact = memory(model, rank)
        values = [exact["lora"], 4 * exact["lora"], exact["vera"], 4 * exact["vera"]]
        differing = [
            i for i, (text, value) in enumerate(zip(printed, values, strict=True)) if not follows(text, value)
        ]
        whole = exact["vera"] + exact["frozen"]
        status = ", ".join(_differences(printed, differing, whole)) or "as printed"
        shown = [f"{values[0]:,}", binary(values[1]), f"{values[2]:,}", binary(values[3])]
        marked = [text + ("*" if i in differing else "") for i, text in enumerate(printed)]
        pairs = [cell for pair in zip(shown, marked, strict=True) for cell in pair]
        rows.append([MODELS[model], str(rank), *pairs, status])
    notes = [
        "By formula: LoRA 2 d r, VeRA d + r for each adapted matrix (query and key of every block), float32.",
        "KB, MB, GB: powers of 1024. *: does not follow from the formula, rounded or cut off.",
        (
            "VeRA with A and B: the printed number counts the frozen matrices too, 2 d r elements that a seed"
            " brings back."
        ),
        (
            "RoBERTa-large at rank 16 has 49,920 parameters, and its printed bytes are right; GPT-3's 4608 MB"
            " are 4.5 GB."
        ),
    ]
    return [Table("Table 1: trained parameters and their memory, by formula", header, rows, notes)]


def _differences(printed: list[str], differing: list[int], whole: int) -> list[str]:
    """Which printed numbers do not follow from the formula, in words. differing: their places, LoRA's two and
    then VeRA's two. whole: VeRA's parameters with A and B."""
    words = ["LoRA differs"] if any(i < 2 for i in differing) else []
    if of_vera := [i for i in differing if i > 1]:
        counts_frozen = all(follows(printed[i], (whole, 4 * whole)[i - 2]) for i in of_vera)
        words.append("VeRA with A and B" if counts_frozen else "VeRA differs")
    return words


def binary(size: float) -> str:
    """Bytes in powers of 1024."""
    unit, scale = next(
        (u, s) for u, s in (("TB", 2**40), ("GB", 2**30), ("MB", 2**20), ("KB", 2**10)) if size >= s
    )
    return f"{size / scale:.1f} {unit}"
