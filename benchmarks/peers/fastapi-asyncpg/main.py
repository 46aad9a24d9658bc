"""FastAPI + asyncpg by hand, for speed: async, one prepared statement for each request, JSON by Pydantic's core."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

import asyncpg
import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StringConstraints
from starlette.exceptions import HTTPException as StarletteHTTPException

SECRET = os.environ["JWT_SECRET"]

COLUMNS = "id, user_id, title, description, status, created_at, updated_at"
LIST = f"SELECT {COLUMNS} FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1000"
GET = f"SELECT {COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2"
CREATE = f"""
    WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
    INSERT INTO tasks (user_id, title, description) VALUES ($1, $2, $3) RETURNING {COLUMNS}
"""
COMPLETE = f"""
    UPDATE tasks SET status = CASE status WHEN 'complete' THEN 'incomplete' ELSE 'complete' END, updated_at = now()
    WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}
"""


class NewTask(BaseModel):
    title: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"\S")]
    description: Annotated[str, StringConstraints(max_length=5000)] | None = None


class Task(BaseModel):
    id: int
    user_id: str
    title: str
    description: str | None
    status: str
    created_at: datetime
    updated_at: datetime


async def keep_session(connection: asyncpg.Connection) -> None:
    """Nothing to reset: no request leaves anything behind in its session. The default is a round trip."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=8, max_size=8, reset=keep_session
    ) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


async def owner(user_id: str, authorization: Annotated[str, Header()] = "") -> str:
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]}
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "Unauthorized", headers={"WWW-Authenticate": "Bearer"}) from error
    if claims["sub"] != user_id:
        raise HTTPException(403, "Forbidden")
    return user_id


async def pool(request: Request) -> asyncpg.Pool:
    return request.app.state.pool


Owner = Annotated[str, Depends(owner)]
Pool = Annotated[asyncpg.Pool, Depends(pool)]


@app.get("/api/{user_id}/tasks", response_model=list[Task])
async def list_tasks(owner: Owner, pool: Pool) -> object:
    return [dict(row) for row in await pool.fetch(LIST, owner)]


@app.post("/api/{user_id}/tasks", response_model=Task, status_code=201)
async def create_task(task: NewTask, owner: Owner, pool: Pool) -> object:
    return dict(await pool.fetchrow(CREATE, owner, task.title, task.description))


@app.get("/api/{user_id}/tasks/{task_id}", response_model=Task)
async def get_task(task_id: int, owner: Owner, pool: Pool) -> object:
    return found(await pool.fetchrow(GET, owner, task_id))


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=Task)
async def complete_task(task_id: int, owner: Owner, pool: Pool) -> object:
    return found(await pool.fetchrow(COMPLETE, owner, task_id))


def found(row: asyncpg.Record | None) -> dict[str, object]:
    if row is None:
        raise HTTPException(404, "Task not found")
    return dict(row)


@app.exception_handler(StarletteHTTPException)
async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


@app.exception_handler(RequestValidationError)
async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse({"error": "; ".join(fault["msg"] for fault in error.errors())}, 400)
