"""What a user was told by the service, and whether the database agrees. Knows no HTTP, and connects to nothing.

The titles of a user's tasks are all different, and no update changes a title: two rows of one title are one creation
carried out twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Task = dict[str, Any]

#: Seconds after its answer in which a write that was answered with 503, or not at all, may still be carried out:
#: PostgreSQL itself stops a statement after three.
LATEST = 3.0


class Entry(NamedTuple):
    """A change of a row, as a trigger wrote it down in the transaction that made it."""

    at: float
    kind: str
    task_id: int
    title: str


@dataclass(frozen=True)
class Doubt:
    """A write whose fate the service did not tell."""

    kind: str
    title: str
    at: float
    #: The task as it was, and as the write would leave it (None: not there).
    before: Task | None
    after: Task | None


@dataclass
class Findings:
    """What is wrong: a sentence for each."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


@dataclass
class Ledger:
    """What one user was told. A task with a write in doubt is not touched again."""

    user_id: str
    tasks: dict[int, Task] = field(default_factory=dict)
    deleted: dict[int, Task] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)
    #: How often each task was inserted, updated and deleted, by kind and title.
    acknowledged: Counter[tuple[str, str]] = field(default_factory=Counter)

    def acknowledge(self, kind: str, task: Task) -> None:
        """A write was answered as done: this is the task after it, or, deleted, before it."""
        self.acknowledged[kind, task["title"]] += 1
        if kind == "DELETE":
            self.deleted[task["id"]] = self.tasks.pop(task["id"])
        else:
            self.tasks[task["id"]] = task

    def doubt(self, kind: str, at: float, before: Task | None, after: Task | None) -> None:
        """A write was answered with 503, or not at all."""
        task = before or after
        assert task is not None
        self.doubts.append(Doubt(kind, task["title"], at, before, after))
        self.tasks.pop(task.get("id", 0), None)

    def audit(self, rows: Sequence[Task], journal: Sequence[Entry]) -> Findings:
        """Compare with the rows of the user and with the journal, both read after the last answer."""
        findings = Findings()
        wrong = self._audit_journal(journal, findings)
        # A row that is not as told is no news where the journal has already said why.
        for title, sentence in self._unlike({row["id"]: row for row in rows}):
            if title not in wrong:
                findings.lost.append(sentence)
        for title, count in Counter(row["title"] for row in rows).items():
            if count > 1 and title not in wrong:
                findings.twice.append(f"{count} tasks {title!r}")
        known = {("INSERT", doubt.title) for doubt in self.doubts} | {*self.acknowledged}
        findings.other += [f"a task that nobody wrote: {row}" for row in rows if ("INSERT", row["title"]) not in known]
        return findings

    def _unlike(self, rows: dict[int, Task]) -> Iterator[tuple[str, str]]:
        for task_id, task in self.tasks.items():
            if rows.get(task_id) != task:
                yield task["title"], f"told {task}, found {rows.get(task_id)}"
        for task_id, task in self.deleted.items():
            if task_id in rows:
                yield task["title"], f"told that it was deleted: {rows[task_id]}"
        by_title = {row["title"]: row for row in rows.values()}
        for doubt in self.doubts:
            if not _is_possible(doubt, row := by_title.get(doubt.title)):
                yield doubt.title, f"may be {doubt.before} or {doubt.after}, found {row}"

    def _audit_journal(self, journal: Iterable[Entry], findings: Findings) -> set[str]:
        """The titles of the tasks about which something was found."""
        found = Counter((entry.kind, entry.title) for entry in journal)
        doubted = {(doubt.kind, doubt.title): doubt for doubt in self.doubts}
        wrong = set()
        for write in {*found, *self.acknowledged}:
            least = self.acknowledged[write]
            most = least + (write in doubted)
            if not least <= found[write] <= most:
                wrong.add(write[1])
            findings.lost += [f"{write}: told {least}, found {found[write]}"] * (least - found[write])
            findings.twice += [f"{write}: at most {most}, found {found[write]}"] * (found[write] - most)
        for entry in journal:
            # Nothing was sent about a task after a doubt, so that what comes late is what was in doubt.
            doubt = doubted.get((entry.kind, entry.title))
            if doubt and entry.at - doubt.at > LATEST:
                findings.other.append(f"{entry.kind} of {entry.title!r}, {entry.at - doubt.at:.1f} s after its answer")
        return wrong


def _is_possible(doubt: Doubt, row: Task | None) -> bool:
    """Whether the row is the task as it was, or as it would be after the write."""
    if row is None:
        return doubt.before is None or doubt.after is None
    if doubt.after is not None and all(row[name] == doubt.after[name] for name in ("description", "status")):
        return True
    return row == doubt.before
