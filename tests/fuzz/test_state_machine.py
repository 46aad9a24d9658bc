"""Three users do whatever the API lets them try, in any order, and a dictionary says what each answer must be."""

import itertools
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from werkzeug.test import TestResponse

from tests.support import Caller, tag_of
from todo.tasks.schemas import DESCRIPTION_LIMIT, TITLE_LIMIT
from todo.web.schemas import PAGE_LIMIT

Task = dict[str, Any]

USERS = ("alice", "bob", "jörg & söhne 🥛")
STATUSES = st.sampled_from(["incomplete", "complete"])
# Few enough letters for a search to find something, and those that are hard to find.
LETTERS = st.sampled_from("aAäÄßẞsSΣςkK\u212a%_\\'& é\u0301🥛")
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TITLES = (
    st.text(LETTERS, min_size=1, max_size=12)
    | st.text(CHARACTERS, min_size=1, max_size=20)
    | CHARACTERS.map(lambda character: character * TITLE_LIMIT)
).filter(lambda title: not title.isspace())
DESCRIPTIONS = (
    st.none()
    | st.text(LETTERS, max_size=12)
    | st.text(CHARACTERS, max_size=20)
    | CHARACTERS.map(lambda character: character * DESCRIPTION_LIMIT)
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {"title": TITLES, "description": DESCRIPTIONS, "status": STATUSES}
CHANGES = st.fixed_dictionaries({}, optional=FIELDS).filter(bool)
AGES = st.sampled_from([0, 0, 1, 2])
LIMITS = st.sampled_from([None, 1, 1, 2, 3])
OTHER = {"complete": "incomplete", "incomplete": "complete"}
#: The clients of each user.
FOLLOWERS = (1, 2)
# At fault on POST as on PUT.
FAULTS: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"title": ""},
        {"title": "\u3000"},
        {"title": None},
        {"title": 1},
        {"title": "x" * (TITLE_LIMIT + 1)},
        {"title": "🥛" * (TITLE_LIMIT + 1)},
        {"title": "a\0"},
        {"title": "x", "description": "x" * (DESCRIPTION_LIMIT + 1)},
        {"title": "x", "description": "\ud800"},
        {"title": "x", "status": "done"},
        {"title": "x", "owner": "bob"},
        {},
        [],
        None,
    ]
)
STATUS_FAULTS = st.sampled_from([{}, [], {"status": None}, {"status": "done"}, {"status": "complete", "title": "x"}])


class Story(RuleBasedStateMachine):
    """One story of three users on an app.

    Each rule is something that a user does, and holds that the answer is what the dictionary says. Ids stay in `ids`
    when their tasks are gone, and anybody may try them.
    """

    #: How many stories have been told, and of how many requests they were.
    told = requests = 0
    #: Each story has users of its own, so that it begins with nothing, whatever the database holds.
    numbers = itertools.count()

    ids = Bundle("ids")
    cursors = Bundle("cursors")
    lists = Bundle("lists")
    users = st.sampled_from(USERS)
    #: Who touches a task: mostly its owner, who is None here.
    anybody = st.sampled_from([None, None, None, *USERS])

    def __init__(self, app: Flask) -> None:
        super().__init__()
        Story.told += 1
        self.app = app
        self.number = next(Story.numbers)
        #: What is, by id.
        self.tasks: dict[int, Task] = {}
        #: Whose each id is or was.
        self.owners: dict[int, str] = {}
        #: The entity tags that each task has had.
        self.tags: dict[int, list[str]] = {}
        #: How many changes of what each user owns there were, and the latest instant of one that was seen.
        self.changes = dict.fromkeys(USERS, 0)
        self.clocks = dict.fromkeys(USERS, "")
        #: The copies that clients keep by the change feed.
        self.followers = {(user, number): Follower() for user in USERS for number in FOLLOWERS}
        #: What was made under each user's keys, as it was then.
        self.kept: dict[tuple[str, str], Task] = {}

    def call(self, user: str, method: str, path: str = "", *, owner: str | None = None, **options: Any) -> TestResponse:
        """What the user gets under the user's own path, or under that of another."""
        Story.requests += 1
        path = f"/api/{quote(self.name_of(owner or user))}/tasks{path}"
        return Caller(self.app, self.name_of(user)).open(method, path, **options)

    def name_of(self, user: str) -> str:
        return f"{user} {self.number}"

    def touch(self, user: str | None, task_id: int, method: str, path: str = "", **options: Any) -> TestResponse | None:
        """What the user, or the owner, gets for the task: None once it is seen that there is no such task of theirs."""
        owner = self.owners[task_id]
        response = self.call(user or owner, method, f"/{task_id}{path}", **options)
        if (user or owner) == owner and task_id in self.tasks:
            return response
        assert_not_found(response)
        return None

    def change(self, response: TestResponse | None, task_id: int, **changes: Any) -> None:
        """Hold that the answer is the task with these changes, and no other; None is nothing changed."""
        if response is not None:
            task, changed = self.tasks[task_id], response.get_json()
            assert response.status_code == 200, response.data
            assert changed == task | changes | {"updated_at": changed["updated_at"]}
            self.note(changed)
            assert response.headers["ETag"] == self.tag_of(task_id)

    def note(self, *tasks: Task) -> None:
        """Hold that these tasks of a user have changed at one instant, later than all before."""
        for task in tasks:
            user = self.owners[task["id"]]
            assert task["updated_at"] > self.clocks[user]
            self.tasks[task["id"]] = task
            self.tags.setdefault(task["id"], []).append(tag_of(task))
        for user, instant in {(self.owners[task["id"]], task["updated_at"]) for task in tasks}:
            self.clocks[user] = instant
            self.changes[user] += 1

    def forget(self, *task_ids: int) -> None:
        """These tasks of a user have been deleted."""
        for task_id in task_ids:
            del self.tasks[task_id]
        for user in {self.owners[task_id] for task_id in task_ids}:
            self.changes[user] += 1

    def tag_of(self, task_id: int, age: int = 0) -> str:
        """The entity tag of the task now, or so many changes ago; a tag that it never had if it is younger."""
        tags = self.tags[task_id]
        return tags[-1 - age] if age < len(tags) else f'"{task_id}@1970-01-01T00:00:00.00000{age}Z"'

    @initialize(target=ids, titles=st.tuples(TITLES, TITLES, TITLES, TITLES), description=st.text(LETTERS, max_size=12))
    def begin(self, titles: tuple[str, ...], description: str) -> MultipleResults[int]:
        """Alice has three tasks, and bob one."""
        users = ("alice", "alice", "bob", "alice")
        return multiple(*(self.create(user, title, description) for user, title in zip(users, titles, strict=True)))

    @rule(target=ids, user=users, title=TITLES, description=DESCRIPTIONS)
    def create(self, user: str, title: str, description: str | None) -> int:
        response = self.call(user, "POST", json={"title": title, "description": description})
        return self.keep(user, response, title, description)

    def keep(self, user: str, response: TestResponse, title: str, description: str | None) -> int:
        """Hold that the answer is a new task of the user."""
        assert response.status_code == 201, response.data
        task = dict(response.get_json())
        said = {"user_id": self.name_of(user), "title": title, "description": description, "status": "incomplete"}
        assert task == {"id": task["id"], **said, "created_at": task["created_at"], "updated_at": task["created_at"]}
        assert task["id"] > max(self.owners, default=0)
        assert response.headers["Location"].endswith(f"/tasks/{task['id']}")
        assert "Idempotency-Replayed" not in response.headers
        self.owners[task["id"]] = user
        self.note(task)
        assert response.headers["ETag"] == self.tag_of(task["id"])
        return int(task["id"])

    @rule(target=ids, user=users, key=st.sampled_from(["k", "K"]), title=st.sampled_from(["a", "b"]))
    def create_once(self, user: str, key: str, title: str) -> Any:
        """What was made under a key is not made twice, whatever has become of it."""
        response = self.call(user, "POST", json={"title": title}, headers={"Idempotency-Key": key})
        if (user, key) not in self.kept:
            task_id = self.keep(user, response, title, None)
            self.kept[user, key] = self.tasks[task_id]
            return task_id
        first = self.kept[user, key]
        if title == first["title"]:
            assert (response.status_code, response.get_json()) == (201, first)
            assert (response.headers["Idempotency-Replayed"], response.headers["ETag"]) == (
                "true",
                tag_of(first),
            )
        else:
            assert response.status_code == 422, response.data
        return multiple()

    @rule(user=anybody, task_id=ids)
    def get(self, user: str | None, task_id: int) -> None:
        response = self.touch(user, task_id, "GET")
        if response is not None:
            assert (response.status_code, response.get_json()) == (200, self.tasks[task_id])
            assert response.headers["ETag"] == self.tag_of(task_id)

    @rule(user=anybody, task_id=ids, age=AGES)
    def get_what_is_newer(self, user: str | None, task_id: int, age: int) -> None:
        response = self.touch(user, task_id, "GET", headers={"If-None-Match": self.tag_of(task_id, age)})
        if response is not None:
            assert response.headers["ETag"] == self.tag_of(task_id)
            if age == 0:
                assert (response.status_code, response.data) == (304, b"")
            else:
                assert (response.status_code, response.get_json()) == (200, self.tasks[task_id])

    @rule(user=anybody, task_id=ids, age=AGES, changes=st.none() | CHANGES)
    def change_what_was_seen(self, user: str | None, task_id: int, age: int, changes: Task | None) -> None:
        """Update, or delete, the version of so many changes ago."""
        condition = {"If-Match": self.tag_of(task_id, age)}
        method, options = ("DELETE", {}) if changes is None else ("PUT", {"json": changes})
        response = self.touch(user, task_id, method, headers=condition, **options)
        if response is None:
            return
        if age:
            assert response.status_code == 412, response.data
        elif changes is None:
            assert (response.status_code, response.data) == (204, b"")
            self.forget(task_id)
        else:
            self.change(response, task_id, **changes)

    @rule(user=anybody, task_id=ids, changes=CHANGES)
    def update(self, user: str | None, task_id: int, changes: Task) -> None:
        self.change(self.touch(user, task_id, "PUT", json=changes), task_id, **changes)

    @rule(user=anybody, task_id=ids, status=STATUSES)
    def set_status(self, user: str | None, task_id: int, status: str) -> None:
        response = self.touch(user, task_id, "PATCH", "/complete", json={"status": status})
        self.change(response, task_id, status=status)

    @rule(user=anybody, task_id=ids)
    def toggle_status(self, user: str | None, task_id: int) -> None:
        is_complete = task_id in self.tasks and self.tasks[task_id]["status"] == "complete"
        response = self.touch(user, task_id, "PATCH", "/complete")
        self.change(response, task_id, status="incomplete" if is_complete else "complete")

    @rule(user=anybody, task_id=ids)
    def delete(self, user: str | None, task_id: int) -> None:
        response = self.touch(user, task_id, "DELETE")
        if response is not None:
            assert (response.status_code, response.data) == (204, b"")
            self.forget(task_id)

    @rule(user=users, status=STATUSES)
    def set_status_of_all(self, user: str, status: str) -> None:
        before = self.listed(View(user, OTHER[status]))
        response = self.call(user, "PATCH", query_string={"status": OTHER[status]}, json={"status": status})
        assert (response.status_code, response.get_json()) == (200, {"changed": len(before), "more": False})
        if before:
            # The answer does not tell the instant, which is one for all.
            now = self.call(user, "GET", f"/{before[0]['id']}").get_json()["updated_at"]
            self.note(*(task | {"status": status, "updated_at": now} for task in before))
        self.read(View(user))

    @rule(user=users)
    def clear(self, user: str) -> None:
        """Delete all complete tasks."""
        complete = self.listed(View(user, "complete"))
        response = self.call(user, "DELETE", query_string={"status": "complete"})
        assert (response.status_code, response.get_json()) == (200, {"deleted": len(complete), "more": False})
        self.forget(*(task["id"] for task in complete))
        self.read(View(user))

    @rule(user=users, number=st.sampled_from(FOLLOWERS), limit=LIMITS)
    def follow(self, user: str, number: int, limit: int | None) -> None:
        """Apply one page of what has changed since the last one, however long that was ago."""
        follower = self.followers[user, number]
        query = {"since": follower.since, "limit": limit}
        known = {} if follower.tag is None else {"If-None-Match": follower.tag}
        response = self.call(user, "GET", "/changes", query_string=without_none(query), headers=known)
        if follower.seen is not None and follower.seen.changes == self.changes[user]:
            assert (response.status_code, response.data) == (304, b"")
            assert follower.tasks == self.tasks_of(user)
            return
        assert response.status_code == 200, response.data
        page = response.get_json()
        assert len(page["changes"]) <= (limit or PAGE_LIMIT)
        for change in page["changes"]:
            if change["task"] is None:
                follower.tasks.pop(change["id"], None)
            else:
                follower.tasks[change["id"]] = change["task"]
        follower.since, follower.tag, follower.seen = page["next"], response.headers["ETag"], None
        if not page["more"]:
            assert follower.tasks == self.tasks_of(user)
            follower.seen = Seen(follower.tag, self.changes[user])

    @rule(user=users, number=st.sampled_from(FOLLOWERS))
    def follow_to_the_end(self, user: str, number: int) -> None:
        self.followers[user, number].seen = self.followers[user, number].tag = None
        while self.followers[user, number].seen is None:
            self.follow(user, number, 2)

    @rule(user=users, number=st.sampled_from(FOLLOWERS))
    def follow_from_the_beginning(self, user: str, number: int) -> None:
        self.followers[user, number] = Follower()

    @rule(user=users, other=users, number=st.sampled_from(FOLLOWERS))
    def borrow_a_token(self, user: str, other: str, number: int) -> None:
        token = self.followers[other, number].since
        if user != other and token is not None:
            response = self.call(user, "GET", "/changes", query_string={"since": token})
            assert (response.status_code, response.get_json()) == (400, {"error": "Invalid sync token"})

    @rule(target=lists, user=users, status=st.none() | STATUSES)
    def see_list(self, user: str, status: str | None) -> "tuple[View, Seen]":
        view = View(user, status)
        response = self.call(user, "GET", query_string=query_of(view, None))
        return view, Seen(response.headers["ETag"], self.changes[user])

    @rule(seen_list=lists)
    def list_what_is_newer(self, seen_list: "tuple[View, Seen]") -> None:
        """304 as long as nothing of the user's has changed, whatever the list."""
        view, seen = seen_list
        response = self.call(view.user, "GET", query_string=query_of(view, None), headers={"If-None-Match": seen.tag})
        if seen.changes == self.changes[view.user]:
            assert (response.status_code, response.data) == (304, b"")
        else:
            assert (response.status_code, response.get_json()) == (200, self.listed(view))

    @rule(user=users, task_id=ids, body=FAULTS, status_body=STATUS_FAULTS)
    def be_at_fault(self, user: str, task_id: int, body: object, status_body: object) -> None:
        for response in (
            self.call(user, "POST", json=body),
            self.call(user, "PUT", f"/{task_id}", json=body),
            self.call(user, "PATCH", f"/{task_id}/complete", json=status_body),
            self.call(user, "PATCH", query_string={"status": "incomplete"}, json=status_body),
            self.call(user, "PATCH", json={"status": "complete"}),
            self.call(user, "PATCH", query_string={"status": "complete"}, json={"status": "complete"}),
            self.call(user, "DELETE", query_string={"status": "incomplete"}),
            self.call(user, "DELETE"),
            self.call(user, "GET", "/changes", query_string={"since": "x"}),
        ):
            assert response.status_code == 400, response.data

    @rule(user=users, task_id=ids)
    def trespass(self, user: str, task_id: int) -> None:
        owner = self.owners[task_id]
        if user != owner:
            for response in (
                self.call(user, "GET", owner=owner),
                self.call(user, "GET", "/changes", owner=owner),
                self.call(
                    user, "PATCH", owner=owner, query_string={"status": "incomplete"}, json={"status": "complete"}
                ),
                self.call(user, "DELETE", owner=owner, query_string={"status": "complete"}),
                self.call(user, "POST", owner=owner, json={"title": "x"}),
                self.call(user, "GET", f"/{task_id}", owner=owner),
                self.call(user, "PUT", f"/{task_id}", owner=owner, json={"title": "x"}),
                self.call(user, "PATCH", f"/{task_id}/complete", owner=owner),
                self.call(user, "DELETE", f"/{task_id}", owner=owner),
            ):
                assert (response.status_code, response.get_json()) == (403, {"error": "Forbidden"})

    @rule(target=cursors, user=users, status=st.none() | STATUSES, limit=LIMITS)
    def list_tasks(self, user: str, status: str | None, limit: int | None) -> Any:
        return self.read(View(user, status, None, limit))

    @rule(target=cursors, user=users, status=st.none() | STATUSES, q=st.text(LETTERS, max_size=2), limit=LIMITS)
    def search(self, user: str, status: str | None, q: str, limit: int | None) -> Any:
        return self.read(View(user, status, q, limit))

    @rule(cursor=cursors)
    def read_on(self, cursor: "Cursor") -> None:
        """However much has changed since."""
        self.read(cursor.view, cursor)

    @rule(user=users, cursor=cursors)
    def borrow_a_cursor(self, user: str, cursor: "Cursor") -> None:
        if user != cursor.view.user:
            response = self.call(user, "GET", query_string=query_of(cursor.view, cursor))
            assert (response.status_code, response.get_json()) == (400, {"error": "Invalid cursor"})

    def read(self, view: "View", cursor: "Cursor | None" = None) -> Any:
        """Hold that the user gets what the list must hold, page by page; what led to its second page."""
        rest = [task for task in self.listed(view) if cursor is None or place_of(task) < cursor.place]
        cursors: list[Cursor] = []
        while True:
            response = self.call(view.user, "GET", query_string=query_of(view, cursor))
            page, rest = rest[: view.limit or PAGE_LIMIT], rest[view.limit or PAGE_LIMIT :]
            assert (response.status_code, response.get_json()) == (200, page)
            found = re.findall("cursor=([^&>]+)", response.headers.get("Link", ""))
            assert len(found) == bool(rest)
            if not rest:
                return cursors[0] if cursors else multiple()
            cursor = Cursor(view, place_of(page[-1]), found[0])
            cursors.append(cursor)

    def listed(self, view: "View") -> list[Task]:
        """What the list must hold."""
        found = [
            task
            for task_id, task in self.tasks.items()
            if self.owners[task_id] == view.user
            and view.status in (None, task["status"])
            and any(fold(view.q or "") in fold(task[name] or "") for name in ("title", "description"))
        ]
        return sorted(found, key=place_of, reverse=True)

    def tasks_of(self, user: str) -> dict[int, Task]:
        """What a client of the user must have."""
        return {task["id"]: task for task in self.listed(View(user))}

    def teardown(self) -> None:
        """However the story went, each user has what the dictionary says, and so has each client."""
        for user in USERS:
            self.read(View(user))
            for number in FOLLOWERS:
                self.follow_to_the_end(user, number)


@dataclass
class Follower:
    """A client that keeps a copy of a user's tasks by the change feed."""

    tasks: dict[int, Task] = field(default_factory=dict)
    since: str | None = None
    #: The tag of the last answer.
    tag: str | None = None
    #: The last answer, if no more followed.
    seen: "Seen | None" = None


class Seen(NamedTuple):
    """The entity tag of an answer, and how many changes there had been."""

    tag: str
    changes: int


class View(NamedTuple):
    """A list as one user looks at it."""

    user: str
    status: str | None = None
    q: str | None = None
    limit: int | None = None


class Cursor(NamedTuple):
    """Where such a list goes on: after this place."""

    view: View
    place: tuple[str, int]
    value: str


def fold(text: str) -> str:
    return text.lower().upper()


def place_of(task: Task) -> tuple[str, int]:
    return task["created_at"], task["id"]


def query_of(view: View, cursor: Cursor | None) -> dict[str, Any]:
    """The query parameters of that page."""
    sent = {"status": view.status, "q": view.q, "limit": view.limit, "cursor": cursor.value if cursor else None}
    return without_none(sent)


def without_none(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def assert_not_found(response: TestResponse) -> None:
    assert (response.status_code, response.data) == (404, b'{"error":"Task not found"}\n')


def tell(app: Flask, *, seed: int, stories: int, steps: int, shorten: bool) -> None:
    """Try so many stories of so many steps; raises what the first one raises that goes wrong.

    To shorten it to its point takes minutes.
    """
    phases = (Phase.generate, Phase.shrink) if shorten else (Phase.generate,)
    # How long this machine takes is no fault.
    patience: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    length = settings(max_examples=stories, stateful_step_count=steps, phases=phases, database=None, **patience)
    run_state_machine_as_test(with_seed(seed)(lambda: Story(app)), settings=length)


def test_whatever_three_users_do_the_answers_are_those_of_a_dictionary(app: Flask) -> None:
    """Where they are not, `make fuzz` looks for the shortest story that shows it."""
    tell(app, seed=1, stories=10, steps=50, shorten=False)
