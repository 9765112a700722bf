"""How readable code is, in numbers: the size of its statements, names that are function
words, and annotations that name Any. tests/test_house.py holds the rooms to limits.

The numbers are symptoms. Whether a name or a statement is clear, a reader decides."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

#: A statement with more syntax nodes than this does several things at once.
DENSE_NODES = 20

#: Words that name nothing. As a part of a longer name they are fine (runs_by_cell).
FUNCTION_WORDS = """
a all again also any apart aside at away beside both by each else every few first_one
for_ found from_ given had here how in_ it its kept known last_one less like made many
more most much near new next_one none now of off old on one only or_ other others out
over own put said same several shown since so some still such taken than that the them
then there these they this those till to told under until up wanted what when where
which while_ who whole whose why with_ without
"""

#: Settings that a user types keep their names.
SETTINGS = frozenset({"out"})


@dataclass
class Language:
    """The counts of one or several files. dense, function_words: where they are, a text for
    each."""

    statements: int = 0
    names: int = 0
    annotations: int = 0
    dense: list[str] = field(default_factory=list)
    function_words: list[str] = field(default_factory=list)
    any_annotations: int = 0

    def add(self, path: str, text: str) -> None:
        """Counts a file."""
        tree = ast.parse(text)
        in_annotations = set()
        for annotation in _annotations(tree):
            parts = list(ast.walk(annotation))
            in_annotations.update(map(id, parts))
            names = {part.id for part in parts if isinstance(part, ast.Name)}
            self.annotations += 1
            self.any_annotations += "Any" in names
        for statement in _statements(tree):
            size = _size(statement, in_annotations)
            self.statements += 1
            if size > DENSE_NODES:
                self.dense.append(f"{path}:{statement.lineno} ({size} nodes)")
        words = FUNCTION_WORDS.split()
        for name, line in _bindings(tree):
            self.names += 1
            word = name.strip("_")
            if word in words and word not in SETTINGS:
                self.function_words.append(f"{path}:{line} {name}")

    def percentages(self) -> dict[str, float]:
        """The measures that have a limit."""
        return {
            "dense statements": 100 * len(self.dense) / self.statements,
            "function words": 100 * len(self.function_words) / self.names,
            "Any": 100 * self.any_annotations / max(1, self.annotations),
        }


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """Annotations of parameters, variables and results."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            annotation = getattr(node, name, None)
            if annotation is not None:
                yield annotation


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Statements other than definitions and docstrings."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, definitions):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        yield node


def _size(statement: ast.stmt, in_annotations: set[int]) -> int:
    """How many syntax nodes a statement has, without statements inside it and annotations.
    in_annotations: the ids of all nodes in annotations."""
    nested = (ast.stmt, ast.excepthandler, ast.match_case)
    size, queue = 0, [statement]
    while queue:
        node = queue.pop()
        size += not isinstance(node, ast.expr_context)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, nested) and id(child) not in in_annotations:
                queue.append(child)
    return size


def _bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that code gives: variables, parameters, attributes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
