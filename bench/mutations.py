"""Small changes of a module's source that a test should notice: `mutants`. No I/O.

What cannot change behaviour, or only what people read, is never mutated: docstrings, annotations, decorators, bases,
log calls, texts and f-strings, protocols, `if __name__`, numbers that a module names (they are tuned, and tests that
repeat them would prove nothing; those in hexadecimal stand in a standard, and are mutated).
"""

import ast
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

PAIRS = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn),
    (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift),
]  # fmt: skip
OTHER: dict[type[ast.AST], Any] = {ast.Div: ast.Mult} | dict(PAIRS) | {b: a for a, b in PAIRS}
OPPOSITE = {"min": "max", "max": "min", "any": "all", "all": "any", "setdefault": "get", "startswith": "endswith"}
IN_SQL = {"FULL": "OFF", "WAL": "OFF", "=ON": "=OFF", "AND": "OR", "min": "max", "max": "min", "DESC": "ASC"}
A_WORD_OF_SQL = re.compile(rf"(?<![a-zA-Z])({'|'.join(IN_SQL)})\b")
ONLY_SAY = {"debug", "info", "warning", "error", "exception", "bind", "_log"}  # methods that only tell people
FOR_PEOPLE = {"name", "thread_name_prefix", "prefix", "reason"}  # keywords of what only people read
SHOWN = 160  # characters of a line that are shown
NO_STATEMENT = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Raise, ast.Delete, ast.Continue, ast.Break)


class Mutant(NamedTuple):
    """Changes one place of a source: its bytes from `start` to `stop` become `text`."""

    start: int
    stop: int
    text: str

    def of(self, source: str) -> str:
        """Return the changed source."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.stop :]).decode()

    def shown(self, source: str) -> str:
        """Return the number of the line that is changed, and the line before and after."""
        data = source.encode()
        first, last = data.count(b"\n", 0, self.start), data.count(b"\n", 0, self.stop) + 1
        before, after = source.splitlines(), self.of(source).splitlines()
        more = len(after) - len(before)
        lines = (" ".join(" ".join(some).split()) for some in (before[first:last], after[first : last + more]))
        return f"{first + 1}: - {'  + '.join(line if len(line) < SHOWN else f'{line[:SHOWN]}…' for line in lines)}"


def mutants(source: str) -> list[Mutant]:
    """Return all mutants of a module's source, in its order."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return [*dict.fromkeys(finder.found)]


def compiles(source: str) -> bool:
    """Tell if a source can be compiled."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Collects mutants. Each method visits one kind of node, and goes on to those parts of it that may be mutated."""

    def __init__(self, source: str) -> None:
        self.found: list[Mutant] = []
        self._source = source.encode()
        self._starts = [0, *itertools.accumulate(map(len, self._source.splitlines(keepends=True)))]
        self._in_function = False

    def _place(self, node: ast.expr | ast.stmt | ast.keyword) -> slice:
        start = self._starts[node.lineno - 1] + node.col_offset
        return slice(start, self._starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0))

    def _replace(self, node: ast.expr | ast.stmt, text: str) -> None:
        place = self._place(node)
        self.found.append(Mutant(place.start, place.stop, text))

    def _visit_all(self, nodes: Sequence[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit(self, node: ast.AST) -> None:
        """Add what a statement's or an operator's kind allows, and go into it."""
        if isinstance(node, NO_STATEMENT) and self._in_function and _acts(node):
            self._replace(node, "pass")
        super().visit(node)

    # --- where nothing is mutated ---

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not any("Protocol" in ast.unparse(base) for base in node.bases):
            self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        outer, self._in_function = self._in_function, True
        self._visit_all([*node.args.defaults, *node.args.kw_defaults, *node.body])
        self._in_function = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.value])

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    visit_Import = visit_ImportFrom = visit_Raise  # type: ignore[assignment]

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    # --- what is mutated ---

    def visit_If(self, node: ast.If) -> None:
        if not self._in_function:  # TYPE_CHECKING, __name__
            return
        self._replace(node.test, f"not ({ast.unparse(node.test)})")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._replace(node, ast.unparse(ast.IfExp(node.test, node.orelse, node.body)))
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._replace(condition, "True")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for at, op in enumerate(node.ops):
            ops = [*node.ops[:at], OTHER[type(op)](), *node.ops[at + 1 :]]
            self._replace(node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._replace(node, f"({ast.unparse(ast.BoolOp(OTHER[type(node.op)](), node.values))})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._replace(node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if self._in_function and type(node.op) in OTHER:
            other = ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
            self._replace(node, f"({ast.unparse(other)})")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self._replace(node.value, "None")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._drop(node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else [])
        self._visit_all(node.body)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if called in ONLY_SAY or called == "cast":
            return
        if called in ("suppress", "isinstance"):
            self._drop(node.args if called == "suppress" else [])
            return
        if called in OPPOSITE:
            func = ast.unparse(node.func).removesuffix(called) + OPPOSITE[called]
            self._replace(node.func, func)
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in FOR_PEOPLE:
                place = self._place(keyword)
                comma = re.match(rb"\s*,?", self._source[place.stop :])
                self.found.append(Mutant(place.start, place.stop + (comma.end() if comma else 0), ""))
        values = [keyword.value for keyword in node.keywords if keyword.arg not in FOR_PEOPLE]
        self._visit_all([node.func, *(node.args[:1] if called == "round" else node.args), *values])

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self._replace(node, str(not node.value))
            case int() | float() if self._in_function or self._is_hexadecimal(node):
                self._replace(node, str(node.value + 1))
            case str() if A_WORD_OF_SQL.search(node.value):
                self._swap_words(node)
            case str() if self._in_function and not re.search(r"\s", node.value):
                self._replace(node, repr(node.value + "?"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._swap_words(node)

    def _swap_words(self, node: ast.expr) -> None:
        place = self._place(node)
        for found in A_WORD_OF_SQL.finditer(self._source[place].decode("latin-1")):
            start = place.start + found.start()
            self.found.append(Mutant(start, start + len(found[0]), IN_SQL[found[0]]))

    def _is_hexadecimal(self, node: ast.Constant) -> bool:
        return (node.end_col_offset or 0) - node.col_offset != len(str(node.value))

    def _drop(self, errors: Sequence[ast.expr]) -> None:
        """Let each of the errors through that are caught."""
        for error in errors:
            self._replace(error, "()")


def _acts(node: ast.AST) -> bool:
    """Return whether leaving out a statement can change anything but what a local name is."""
    match node:
        case ast.Expr(value=ast.Await(value=value)) | ast.Expr(value=value):
            says = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ONLY_SAY
            return isinstance(value, ast.Call) and not says
        case ast.Assign(targets=targets):
            return any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        case ast.AnnAssign(target=target):
            return isinstance(target, ast.Attribute) and node.value is not None
    return True
