"""Draws mutants: places where one operator or constant decides a number, an id or a file.

    python tests/nets/mutants/draw.py FOLDER_OF_THE_CODE 40

The seed is fixed. Each line says the module, the line and the change. mutants.md describes what the
drawn ones break, so that the same faults can be planted where the new code has them."""

import ast
import random
import sys
from pathlib import Path

SEED = 20261207
#: Modules whose code decides a number, an id or a file, and how many mutants each gives.
MODULES = {
    "runs/record/cell.py": 4,
    "runs/record/keys.py": 1,
    "runs/record/derived.py": 2,
    "runs/record/ledger.py": 2,
    "runs/record/files.py": 1,
    "runs/record/intervals.py": 1,
    "runs/record/steps.py": 2,
    "runs/run/identity.py": 2,
    "runs/run/definition.py": 1,
    "runs/machine/locks.py": 1,
    "runs/machine/hashes.py": 1,
    "runs/sweep/pool.py": 2,
    "runs/training/loop.py": 2,
    "runs/training/checkpoint.py": 2,
    "runs/training/reward.py": 1,
    "runs/training/policy_gradient.py": 1,
    "runs/training/sampling.py": 1,
    "runs/config/resolvers.py": 1,
    "analysis/inference.py": 2,
    "analysis/paired.py": 1,
    "analysis/paper_comparison.py": 1,
    "vera/methods/vera.py": 1,
    "vera/methods/lora.py": 1,
    "vera/projections.py": 1,
    "vera/adapter_file.py": 1,
    "tasks/metrics.py": 1,
    "tasks/beam.py": 1,
    "tasks/e2e_metrics.py": 1,
    "tasks/answers.py": 1,
}
SWAPS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Mod: "*",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.And: "or",
    ast.Or: "and",
    ast.Not: "(nothing)",
}


def sites(tree: ast.Module) -> list[tuple[int, str]]:
    """The line and the change of each place that could be mutated, outside of messages."""
    found = []
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        operators = []
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.AugAssign):
            operators = [node.op]
        elif isinstance(node, ast.Compare):
            operators = node.ops
        for operator in operators:
            if type(operator) in SWAPS:
                change = f"{type(operator).__name__} -> {SWAPS[type(operator)]}"
                found.append((node.lineno, f"{ast.unparse(node)}: {change}"))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            new = (not node.value) if isinstance(node.value, bool) else node.value + 1
            found.append((node.lineno, f"{node.value} -> {new}"))
    return sorted(set(found))


def main() -> None:
    root, number = Path(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(SEED)
    drawn = []
    for module, count in MODULES.items():
        text = (root / module).read_text(encoding="utf-8")
        lines = text.splitlines()
        places = sites(ast.parse(text))
        for line, change in draw.sample(places, min(2 * count, len(places))):
            drawn.append(f"{module}:{line}: {change}   | {lines[line - 1].strip()}")
    print(*drawn[:number], sep="\n")


if __name__ == "__main__":
    main()
