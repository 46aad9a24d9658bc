"""What `make mutants` runs: it puts small faults into todo/ and config.py, one at a time, and sees if a test fails.

First all tests run once (but tests/ecosystem and tests/faults), to record how long each takes and which lines it
reaches. Then COUNT mutants, drawn by SEED, run in copies of what is committed, WORKERS at once. The first test that
fails kills a mutant; so does a run that does not end in time.

- In a function, the tests that reach the line run: BATCH of them at first, or what takes QUICK seconds, the rest only
  for a mutant that survives those, and at most PATIENCE seconds long. `spread` has their order.
- A value that is named at import is reached by the tests that reach a line with that name, in any file.
- A line that runs at import, at the start of an app that many tests share, or once in a process (its file has a cache,
  or compiles SQL) has few tests of its own. All that reach its file, or a line that names a function of it, follow.
  With the first ones run those in the file of its name, and those of AT_IMPORT.
- Of any other line these come last: they may start a process that reaches it.
- A test that fails the same way without the mutant, as some do that rely on an earlier one, is left out, and said so.
  One of tests/live kills only if it fails a second time, alone.
- Where no test reaches a line in its own process, those of THROUGH_PROCESSES run.

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
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy as copied
from itertools import accumulate, chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from coverage import CoverageData

from tests.support import ROOT, postgresql_server

INTO = Path(os.environ.get("INTO") or ROOT / ".mutants").absolute()
BATCH, QUICK, PATIENCE = 60, 8, 150
THROUGH_PROCESSES = ("tests/live/test_start.py", "tests/live/test_commands.py", "tests/live/test_gunicorn.py")
#: Their tests read what is made at import, the OpenAPI document and the tables, and reach no line of it.
AT_IMPORT = ("tests/test_openapi.py", "tests/test_migrations.py")
ONCE = re.compile(r"@cache|cache\(|@compiles|_compiled")
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


class Reach:
    """Which tests reach which lines, and how long each takes: from one run of all of them, which is kept in INTO."""

    def __init__(self, copy: Path, environ: dict[str, str], workers: int) -> None:
        coverage, log = INTO / "coverage", INTO / "tests.log"
        if not log.exists():
            command = ["pytest", "tests", "-vv", "-p", "no:cacheprovider", f"-n{workers if workers > 1 else 0}"]
            # Also tests/live, which pyproject.toml leaves out of `make test`.
            command += ["-o", "norecursedirs=.*", "-o", "faulthandler_timeout=300"]
            command += ["--cov", "--cov-context=test", "--cov-report=", "--cov-fail-under=0", "--durations=0"]
            command += ["--ignore=tests/ecosystem", "--ignore=tests/faults", f"--basetemp={copy.parent}/tmp"]
            with (unfinished := INTO / "tests.unfinished").open("w") as file:
                options: Any = {"cwd": copy, "env": environ | {"COVERAGE_FILE": str(coverage)}, "stdout": file}
                subprocess.run([sys.executable, "-m", *command], **options, stderr=subprocess.STDOUT, check=False)
            unfinished.rename(log)
        report = log.read_text()
        self.seconds: dict[str, float] = defaultdict(float)
        self.trusted: set[str] = set()
        for seconds, test in re.findall(r"^([\d.]+)s (?:call|setup) +(\S.*)$", report, re.MULTILINE):
            self.seconds[test] += float(seconds)
        # A run that takes long outlives what some tests prepare at its start: they have a second try.
        for test in failures(copy, FAILED.findall(report), environ, 600, len(self.seconds)):
            self.leave_out(test)
        contexts = CoverageData(str(coverage))
        contexts.read()
        self.lines = {path: contexts.contexts_by_lineno(str(copy / path)) for path in sources(copy)}
        self.trees = {path: ast.parse((copy / path).read_text()) for path in sources(copy)}

    def leave_out(self, test: str) -> bool:
        """Forget a test that fails without any mutant, whatever its parameters; whether it was known."""
        name = test.partition("[")[0]
        found = [one for one in list(self.seconds) if one.partition("[")[0] == name]
        for one in found:
            self.seconds.pop(one, None)
        print(f"{len(found)} tests left out, since one fails without any mutant: {test}", flush=True)
        return bool(found)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests for a mutant, in the order that they are taken in."""
        lines, statement = self.lines[mutant.path], mutant.statement
        body = getattr(statement, "body", None)
        numbers = {*range(mutant.old.lineno, mutant.old.end_lineno + 1)}
        numbers |= {*range(statement.lineno, body[0].lineno if body else statement.end_lineno + 1)}
        contexts = {context for number in numbers for context in lines.get(number, ())}
        if not mutant.is_in_function:
            targets = getattr(statement, "targets", [getattr(statement, "target", None)])
            for name in {getattr(target, "id", None) for target in targets} - {None}:
                contexts |= self.users(name)
        direct = self.known(contexts)
        is_shared = (
            not mutant.is_in_function
            or any(not context or context.endswith("|setup") for context in contexts)
            or ONCE.search(ast.unparse(self.trees[mutant.path])) is not None
        )
        rest = own = {test for test in self.seconds if Path(test.partition("::")[0]).name in own_files(mutant.path)}
        if is_shared:
            functions = [node for node in self.trees[mutant.path].body if isinstance(node, ast.FunctionDef)]
            rest = self.known(chain(*lines.values(), *(self.users(function.name) for function in functions)))
            direct |= own
        if not direct:
            direct = {test for test in self.seconds if test.startswith(THROUGH_PROCESSES)}
        return self.spread(direct, mutant.path) + self.spread(rest - direct, mutant.path)

    def users(self, name: str) -> set[str]:
        """What reaches a line, in whatever file, that has that name."""
        nodes = ((path, node) for path, tree in self.trees.items() for node in ast.walk(tree))
        uses = (
            (path, node.lineno) for path, node in nodes if name in {getattr(node, of, None) for of in ("id", "attr")}
        )
        return {context for path, number in uses for context in self.lines[path].get(number, ())}

    def known(self, contexts: Iterable[str]) -> set[str]:
        return {context.rpartition("|")[0] for context in contexts} & self.seconds.keys()

    def haste(self, test: str) -> tuple[bool, float]:
        """What sorts the fastest first, and those on PostgreSQL last."""
        return any(name in test for name in ("postgresql", "partitioned", "citus")), self.seconds[test]

    def spread(self, tests: set[str], path: str) -> list[str]:
        """The fastest of each test file, file after file, until none is left.

        Near files have more in each turn: 20 tests where the file has the name of the module or is one of AT_IMPORT, 5
        where its folder has the name of the module's, else 1.
        """
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=self.haste, reverse=True):
            by_file[test.partition("::")[0]].append(test)

        def portion(file: str) -> int:
            if Path(file).name in own_files(path):
                return 20
            is_beside = "/" in path and Path(file).parent.name == Path(path).parent.name
            return 5 if is_beside else 1

        files = sorted(by_file, key=lambda file: (-portion(file), self.haste(by_file[file][-1])))
        order = []
        while any(by_file.values()):
            order += [by_file[file].pop() for file in files for _ in range(min(portion(file), len(by_file[file])))]
        return order


def own_files(path: str) -> set[str]:
    """The names of the test files that are first asked about a module."""
    module = Path(path).parent if path.endswith("__init__.py") else Path(path)
    return {f"test_{module.stem}.py", *(Path(file).name for file in AT_IMPORT)}


def sources(folder: Path) -> list[str]:
    """The files to mutate."""
    return ["config.py", *sorted(str(path.relative_to(folder)) for path in (folder / "todo").rglob("*.py"))]


def end_processes(folder: Path) -> None:
    """Kill what a run left behind: every process that works in that folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.joinpath("cwd").readlink().is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)


def failures(copy: Path, tests: list[str], environ: dict[str, str], patience: float, most: int = 1) -> list[str]:
    """The tests that failed, the run itself, or "timeout" where it did not end."""
    if not tests:
        return []
    listed, log = copy.parent / "tests", copy.parent / "log"
    listed.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", f"--maxfail={most}", "-q", "-p", "no:cacheprovider", "-n0", "--tb=no"]
    with log.open("w") as file:
        options: Any = {"cwd": copy, "env": environ, "stdout": file, "stderr": file}
        process = subprocess.Popen([*command, f"--basetemp={copy.parent}/tmp", f"@{listed}"], **options)
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        return ["timeout"]
    finally:
        process.kill()
        process.wait()
        end_processes(copy.parent)
    output = log.read_text(errors="replace")
    # A mutant may change what a test is parametrized with, and by that its id.
    lost = {line.partition(f"{copy}/")[2] for line in re.findall("^ERROR: not found: .*", output, re.MULTILINE)}
    if code == 4 and lost:
        whole = {test.partition("[")[0] for test in lost if "[" in test}
        return failures(copy, [test for test in tests if test not in lost] + sorted(whole), environ, patience)
    return [] if code in {0, 5} else FAILED.findall(output) or [f"exit code {code} of pytest"]


def judge(mutant: Mutant, copy: Path, reach: Reach, environ: dict[str, str], doubted: frozenset[str]) -> str:
    """Run the tests against the mutant, without the doubted ones: "killed by …" or "SURVIVED …"."""
    tests = [test for test in reach.tests(mutant) if test not in doubted]
    # What has a limit of its own must end well within it: this machine may be busy.
    quick = [
        test for test, spent in zip(tests, accumulate(map(reach.seconds.get, tests)), strict=True) if spent < QUICK
    ]
    ran, rest = sorted(quick[:BATCH], key=reach.haste), tests[len(quick[:BATCH]) :]
    source = (copy / mutant.path).read_text()
    (copy / mutant.path).write_text(mutant.apply(source))
    limit = min(120, 40 + 10 * sum(reach.seconds[test] for test in ran))
    failed, note = failures(copy, ran, environ, limit), f"{len(tests)} tests"
    if rest and not failed:
        ran, failed = rest, failures(copy, rest, environ, PATIENCE)
        if failed == ["timeout"]:
            failed, note = [], f"{note}, which did not all run in {PATIENCE} s"
    killer = failed[0] if failed else None
    # These have limits of time, and share a server with the other worker's: one may have failed by chance.
    if killer in ran and killer.startswith("tests/live/") and not failures(copy, [killer], environ, 300):
        doubted |= {killer}
    (copy / mutant.path).write_text(source)
    if not killer:
        return f"SURVIVED {note}"
    if killer in doubted:
        return judge(mutant, copy, reach, environ, doubted)
    if killer in ran and killer not in reach.trusted:
        # It may fail in this order whatever the code is: there are tests that pass only after others.
        for test in failures(copy, ran[: ran.index(killer) + 1], environ, 300):
            if reach.leave_out(test):
                return judge(mutant, copy, reach, environ, doubted)
        reach.trusted.add(killer)
    return f"killed by {killer}"


def drawn(folder: Path, seed: int, count: int) -> list[Mutant]:
    """The mutants of that seed: one of each string at most, since else they would be half of all."""
    trees = {path: ast.parse((folder / path).read_text()) for path in sources(folder)}
    mutants = [mutant for path, tree in trees.items() for mutant in mutants_of(path, tree)]
    chance = random.Random(seed)
    chance.shuffle(mutants)
    strings = {id(mutant.old): mutant for mutant in mutants if mutant.kind == "string"}
    mutants = [mutant for mutant in mutants if mutant.kind != "string" or mutant is strings[id(mutant.old)]]
    return chance.sample(mutants, len(mutants))[:count]


def copy_of_tree(folder: Path) -> Path:
    """What is committed, without what an earlier run left in it."""
    copy = folder / "tree"
    if not copy.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        (copy / ".venv").symlink_to(sys.prefix)
        (copy / ".git/info/exclude").write_text(".venv\n")
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=copy, check=True)
    return copy


def main() -> int:
    """Judge each mutant that has no line in the results yet, and print the share of those killed."""
    seed, count, workers = (int(os.environ.get(*of)) for of in (("SEED", "2026"), ("COUNT", "300"), ("WORKERS", "2")))
    copies = [copy_of_tree(INTO / f"worker{number}") for number in range(workers)]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=copies[0], check=True, capture_output=True, text=True)
    mutants, results, title = drawn(copies[0], seed, count), INTO / "results.txt", f"SEED={seed} of {commit.stdout}"
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
        reach = Reach(copies[0], environ, workers)

        def judge_one(number: int) -> None:
            copy, begun = idle.get(), time.monotonic()
            verdict = judge(mutants[number], copy, reach, environ, frozenset())
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
