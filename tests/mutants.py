"""What `make mutants` runs: it puts small faults into todo/ and config.py, one at a time, and sees if a test fails.

COUNT mutants of the COMMIT, drawn by SEED, are judged in WORKERS copies of it. First the tests of the module run: the
files of its name, and those in a folder of its folder's name. Then all tests of `make test`. The first one that fails
kills the mutant, if it fails once more, alone: some have limits of time, and fail by chance on a busy machine. Three
that fail, one in each run, kill it too: some faults are seen by the second test of a process only.

Not mutated: docstrings, annotations, TypeVar, the type of cast(), what stands within an f-string, and the texts and
examples of the OpenAPI document. INTO/results.txt has a line for each mutant; the next run goes on where one stopped.
"""

import ast
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy as copied
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from tests.support import ROOT, postgresql_server

INTO = Path(os.environ.get("INTO") or ROOT / ".mutants").absolute()
#: Seconds that a run of tests may take. One that takes longer kills the mutant too.
PATIENCE = 900
#: How often the tests run until one fails twice.
ATTEMPTS = 3
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", re.MULTILINE)
#: Fields of the OpenAPI document, and variables that hold nothing else.
TEXTS = {"description", "metadata", "example", "examples", "EXAMPLE", "COMPLETED", "ERROR_RESPONSES"}
#: What takes the place of each operator.
FLIPPED = {
    getattr(ast, names[0]): [getattr(ast, name) for name in names[1:]]
    for names in map(str.split, (
        "Eq NotEq", "NotEq Eq", "Lt LtE GtE", "LtE Lt Gt", "Gt GtE LtE", "GtE Gt Lt", "Is IsNot", "IsNot Is",
        "In NotIn", "NotIn In", "And Or", "Or And", "Add Sub", "Sub Add", "Mult FloorDiv", "Div Mult", "FloorDiv Mult",
        "Mod Mult",
    ))
}  # fmt: skip


class Mutant(NamedTuple):
    """A fault: `new` in the place of `old`, in that statement."""

    path: str
    kind: str
    old: Any
    new: ast.AST
    statement: Any
    is_in_function: bool

    def apply(self, source: str) -> str:
        """The source with the fault. The rest of the file stays as it is."""
        lines = source.encode().splitlines(keepends=True)
        # An identity in the place of a decorator; the parentheses keep an expression one.
        new = ast.unparse(self.new) if isinstance(self.new, ast.stmt) else f"({ast.unparse(self.new)})"
        before = b"".join(lines[: self.old.lineno - 1]) + lines[self.old.lineno - 1][: self.old.col_offset]
        after = lines[self.old.end_lineno - 1][self.old.end_col_offset :] + b"".join(lines[self.old.end_lineno :])
        return (before + new.encode() + after).decode()

    def __str__(self) -> str:
        old, new = (re.sub(r"\s+", " ", ast.unparse(node)) for node in (self.old, self.new))
        start = max(0, len(os.path.commonprefix([old, new])) - 30)  # noqa: RUF071 (of characters)
        return f"{self.path}:{self.old.lineno} {self.kind}: {old[start:][:90]} -> {new[start:][:90]}"


def changed(node: Any, **values: Any) -> Any:
    """A copy of the node with those fields."""
    node = copied(node)
    for name, value in values.items():
        setattr(node, name, value)
    return node


def without(entries: list[Any], index: int, *instead: Any) -> list[Any]:
    return [*entries[:index], *instead, *entries[index + 1 :]]


def faults(node: Any) -> Iterator[tuple[str, Any, ast.AST]]:  # noqa: C901, PLR0912 (a table of cases)
    """Each fault of this very node: its kind, the node that goes, and what takes its place."""
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                for flipped in FLIPPED[type(operator)]:
                    yield "comparison", node, changed(node, ops=without(node.ops, index, flipped()))
        case ast.BoolOp():
            yield "and/or", node, changed(node, op=FLIPPED[type(node.op)][0]())
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd()):
            yield "arithmetic", node, node.left
        case ast.BinOp() | ast.AugAssign() if type(node.op) in FLIPPED:
            yield "arithmetic", node, changed(node, op=FLIPPED[type(node.op)][0]())
        case ast.UnaryOp():
            yield "not" if isinstance(node.op, ast.Not) else "arithmetic", node, node.operand
        case ast.Constant(value=bool()):
            yield "constant", node, ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield from (("constant", node, ast.Constant(node.value + step)) for step in (1, -1))
        case ast.Constant(value=str() | bytes()):
            values = {node.value[:0], node.value + ("x" if isinstance(node.value, str) else b"x")} - {node.value}
            yield from (("string", node, ast.Constant(value)) for value in sorted(values))
        case ast.JoinedStr():
            yield "string", node, ast.Constant("")
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant) or node.value.value is not None:
            yield "return", node, ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield "statement", node, ast.Pass()
        case ast.Call():
            for index, keyword in enumerate(node.keywords):
                if keyword.arg not in {None, *TEXTS}:
                    yield "keyword", node, changed(node, keywords=without(node.keywords, index))
        case ast.Subscript(slice=ast.Slice()):
            for end in ("lower", "upper", "step"):
                if getattr(node.slice, end) is not None:
                    yield "slice", node, changed(node, slice=changed(node.slice, **{end: None}))
        case ast.FunctionDef() | ast.ClassDef():
            identity = ast.parse("lambda thing: thing", mode="eval").body
            yield from (("decorator", decorator, identity) for decorator in node.decorator_list)


def parts(node: Any) -> Iterator[ast.AST]:
    """The children of the node, without what is not mutated."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in {"TypeVar", "header", "error_response"}:
            return
        if node.func.id == "cast":
            node = changed(node, args=node.args[1:])
    names = {getattr(node, "arg", None)} | {getattr(name, "id", None) for name in getattr(node, "targets", [])}
    names.add(getattr(getattr(node, "target", None), "id", None))
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if is_text or isinstance(node, ast.JoinedStr) or names & TEXTS:
        return
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        kept = [pair for pair in pairs if not isinstance(pair[0], ast.Constant) or pair[0].value not in TEXTS]
        yield from filter(None, chain(*kept))
        return
    for name, value in ast.iter_fields(node):
        if name not in {"annotation", "returns"}:
            children = value if isinstance(value, list) else [value]
            yield from (child for child in children if isinstance(child, ast.AST))


def mutants_of(path: str, node: Any, statement: Any = None, is_in_function: bool = False) -> Iterator[Mutant]:
    """Every mutant of the node and of what is in it."""
    statement = node if isinstance(node, ast.stmt) else statement
    for kind, old, new in faults(node):
        yield Mutant(path, kind, old, new, statement, is_in_function)
    for part in parts(node):
        is_in_body = isinstance(node, ast.FunctionDef) and part in node.body
        yield from mutants_of(path, part, statement, is_in_function or is_in_body)


def sources(folder: Path) -> list[str]:
    """The files to mutate."""
    return ["config.py", *sorted(str(path.relative_to(folder)) for path in (folder / "todo").rglob("*.py"))]


def end_processes(folder: Path) -> None:
    """Kill what a run left behind: every process that works in that folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.joinpath("cwd").readlink().is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)


def failure(copy: Path, tests: Sequence[str], environ: dict[str, str]) -> str | None:
    """Return the first test that failed, or how else the run did not end well; None if all passed."""
    log = copy.parent / "log"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n0", "--tb=no"]
    with log.open("w") as file:
        options: Any = {"cwd": copy, "env": environ, "stdout": file, "stderr": file}
        process = subprocess.Popen([*command, f"--basetemp={copy.parent}/tmp", *tests], **options)
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return "the time"
    finally:
        process.kill()
        process.wait()
        end_processes(copy.parent)
    found = FAILED.findall(log.read_text(errors="replace"))
    # 5: none of these tests is one of `make test`.
    return None if code in {0, 5} else found[0] if found else f"exit code {code} of pytest"


def own_tests(copy: Path, path: str) -> list[str]:
    """The test files and folders of a module: those of its name, and of its folder's."""
    module = Path(path).parent if path.endswith("__init__.py") else Path(path)
    found = {*(copy / "tests").rglob(f"test_{module.stem}.py"), copy / "tests" / module.parent.name}
    return sorted(str(each.relative_to(copy)) for each in found if each.exists() and each != copy / "tests")


def judge(mutant: Mutant, copy: Path, environ: dict[str, str]) -> str:
    """Run the tests against the mutant: "killed by …" or "SURVIVED …"."""
    source = (copy / mutant.path).read_text()
    (copy / mutant.path).write_text(mutant.apply(source))
    doubted: list[str] = []
    try:
        for tests in (own_tests(copy, mutant.path), ["tests"]):
            for _ in range(ATTEMPTS):
                skipped = [f"--deselect={test}" for test in doubted]
                killer = failure(copy, [*tests, *skipped], environ) if tests else None
                if killer is None:
                    break
                if not killer.startswith("tests/") or "::" not in killer or failure(copy, [killer], environ):
                    return f"killed by {killer}"
                doubted.append(killer)
            else:
                return f"killed by {killer}, after others"
    finally:
        (copy / mutant.path).write_text(source)
    return " ".join(["SURVIVED", *(["without", *doubted] if doubted else [])])


def drawn(folder: Path, seed: int, count: int) -> list[Mutant]:
    """The mutants of that seed: one of each string at most, since else they would be half of all."""
    trees = {path: ast.parse((folder / path).read_text()) for path in sources(folder)}
    mutants = [mutant for path, tree in trees.items() for mutant in mutants_of(path, tree)]
    chance = random.Random(seed)
    chance.shuffle(mutants)
    strings = {id(mutant.old): mutant for mutant in mutants if mutant.kind == "string"}
    mutants = [mutant for mutant in mutants if mutant.kind != "string" or mutant is strings[id(mutant.old)]]
    return chance.sample(mutants, len(mutants))[:count]


def copy_of_tree(folder: Path, commit: str) -> Path:
    """What is committed, without what an earlier run left in it."""
    copy = folder / "tree"
    if not copy.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        (copy / ".venv").symlink_to(sys.prefix)
        (copy / ".git/info/exclude").write_text(".venv\n")
    subprocess.run(["git", "checkout", "--quiet", "--force", commit], cwd=copy, check=True)
    return copy


def main() -> int:
    """Judge each mutant that has no line in the results yet, and print the share of those killed."""
    seed, count, workers = (int(os.environ.get(*of)) for of in (("SEED", "2026"), ("COUNT", "300"), ("WORKERS", "2")))
    named = ["git", "rev-parse", os.environ.get("COMMIT", "HEAD")]
    commit = subprocess.run(named, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    copies = [copy_of_tree(INTO / f"worker{number}", commit) for number in range(workers)]
    mutants, results, title = drawn(copies[0], seed, count), INTO / "results.txt", f"SEED={seed} of {commit}\n"
    if not results.exists():
        results.write_text(title)
    if not results.read_text().startswith(title):
        print(f"{INTO} has the results of another seed or commit: remove it first")
        return 1
    idle: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        idle.put(copy)
    inherited = dict(os.environ)
    with postgresql_server() as server:
        environ = inherited | {"TEST_DATABASE_URL": server.render_as_string(hide_password=False)}

        def judge_one(number: int) -> None:
            copy, begun = idle.get(), time.monotonic()
            verdict = judge(mutants[number], copy, environ)
            idle.put(copy)
            line = f"{number:03} {mutants[number]} | {verdict} ({time.monotonic() - begun:.0f} s)"
            print(line, flush=True)
            with results.open("a") as file:
                file.write(f"{line}\n")

        judged = {int(number) for number in re.findall(r"^(\d+) ", results.read_text(), re.MULTILINE)}
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(judge_one, [number for number in range(len(mutants)) if number not in judged]))
        _, *lines = results.read_text().splitlines()
    survivors = [line for line in lines if "| SURVIVED" in line]
    print(*survivors, f"{1 - len(survivors) / len(lines):.1%} of {len(lines)} mutants were killed", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
