"""`flask seed`: creates example tasks for development and demonstrations. No request uses it."""

from collections.abc import Iterator
from itertools import islice
from random import Random
from time import time_ns
from typing import Any, cast

import click
from flask import Blueprint
from sqlalchemy import Table, insert

from todo.db.clock import tick_or_start
from todo.db.commands import BATCH, acting_for, on_database, progress, transaction
from todo.identity.commands import UserId
from todo.instants import from_microseconds
from todo.tasks.models import Task

# The table, not the model: the ORM session rewrites inserts into a model.
TASKS = cast(Table, Task.__table__)
SIX_WEEKS = 6 * 7 * 24 * 3600 * 1_000_000
LARGEST_COUNT = 1_000_000

WHOM = ("the bank", "the dentist", "Zoë", "the landlord", "grandmother", "the insurance", "Mr. Müller", "the school")
WHAT = ("the rent", "the car", "the holiday", "the tax return", "the birthday party", "the new bicycle", "the move")
TITLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Buy {}",
        ("milk", "bread", "coffee", "flowers", "stamps", "light bulbs", "cat food", "a present for Zoë", "jalapeños"),
    ),
    ("Call {}", WHOM),
    ("Write to {}", WHOM),
    ("Pay for {}", WHAT),
    ("See about {}", WHAT),
    ("Book {}", ("a table at Café Größ", "train tickets", "the dentist", "a hotel in Kraków", "the squash court")),
    (
        "Read {}",
        ("the contract", "the minutes of Monday", "chapter 7", "that article on sleep", "The Brothers Karamazov"),
    ),
    ("Clean {}", ("the kitchen", "the windows", "the bicycle", "the inbox", "the garage 🧹")),
    ("Repair {}", ("the shelf", "the dripping tap", "the back door", "the printer again")),
    ("Prepare {}", ("the meeting", "slides for Thursday", "dinner for six", "the quarterly report")),
)
DESCRIPTIONS = (
    "Before Friday",
    "Ask about the price first",
    "It can wait until next week",
    "See the notes of the last meeting, and bring them along",
    "Not urgent, but it has been on the list for a while",
    "Two at most.\nThe small ones will do",
    "Opening hours: Mon to Fri, 9 to 17",
)

blp = Blueprint("seed", __name__, cli_group=None)


@blp.cli.command("seed")
@click.argument("user_id", type=UserId())
@click.option("--count", type=click.IntRange(1, LARGEST_COUNT), default=50, show_default=True, help="Number of tasks")
@on_database
def seed(user_id: str, count: int) -> None:
    """Create realistic tasks of the past six weeks for a user"""
    tasks = make_tasks(user_id, count, time_ns() // 1000)
    with acting_for(user_id), progress(count, "Making tasks") as done:
        # In short transactions: SQLite has one writer, and requests must not wait long for it.
        while batch := list(islice(tasks, BATCH)):
            with transaction() as connection:
                now = connection.execute(tick_or_start(), {"user_id": user_id, "owner_email": None}).one().changed_at
                connection.execute(insert(TASKS), [{**task, "updated_at": now} for task in batch])
            done(len(batch))
    click.echo(f"Made {count} tasks for {user_id}")


def make_tasks(user_id: str, count: int, now: int) -> Iterator[dict[str, Any]]:
    """Yield the tasks, oldest first. The same user always gets the same ones. now: in microseconds since 1970.

    The older a task is, the more likely it is complete. Elsewhere created_at is an instant of the owner's clock. Here
    it is spread over six weeks, because a list whose tasks all have the same second would not look real.
    """
    random = Random(user_id)  # noqa: S311 (nothing here is a secret)
    for number in range(count):
        age = (count - number - random.random()) / count
        created_at = now - int(age * SIX_WEEKS)
        is_complete = random.random() < 0.3 + 0.6 * age
        form, things = random.choice(TITLES)
        yield {
            "user_id": user_id,
            "title": form.format(random.choice(things)),
            "description": random.choice(DESCRIPTIONS) if random.random() < 0.4 else None,
            "status": "complete" if is_complete else "incomplete",
            "created_at": from_microseconds(created_at),
        }
