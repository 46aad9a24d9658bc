"""FastAPI + SQLModel as their documentation writes it: sync path operations and a session for each request."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import OAuth2PasswordBearer
from pydantic import field_validator
from sqlmodel import Field, Session, SQLModel, col, create_engine, select
from starlette.exceptions import HTTPException as StarletteHTTPException


class User(SQLModel, table=True):
    __tablename__ = "users"

    id: str = Field(primary_key=True)
    email: str | None = None


class TaskBase(SQLModel):
    title: str = Field(min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)


class Task(TaskBase, table=True):
    __tablename__ = "tasks"

    id: int | None = Field(default=None, primary_key=True)
    user_id: str = Field(foreign_key="users.id")
    status: str = "incomplete"
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class TaskCreate(TaskBase):
    @field_validator("title")
    @classmethod
    def is_not_blank(cls, title: str) -> str:
        if title.isspace():
            raise ValueError("Title cannot be empty")
        return title


class TaskPublic(TaskBase):
    id: int
    user_id: str
    status: str
    created_at: datetime
    updated_at: datetime


# SQLAlchemy takes postgresql:// for psycopg 3; the other servers have psycopg2.
engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://", 1), pool_size=8, max_overflow=0
)
oauth2_scheme = OAuth2PasswordBearer(tokenUrl="token", auto_error=False)
app = FastAPI()


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


async def get_current_user(user_id: str, token: Annotated[str | None, Depends(oauth2_scheme)]) -> str:
    try:
        claims = jwt.decode(
            token or "", os.environ["JWT_SECRET"], algorithms=["HS256"], options={"require": ["exp", "sub"]}
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "Unauthorized", headers={"WWW-Authenticate": "Bearer"}) from error
    if claims["sub"] != user_id:
        raise HTTPException(403, "Forbidden")
    return user_id


SessionDep = Annotated[Session, Depends(get_session)]
CurrentUser = Annotated[str, Depends(get_current_user)]


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
def read_tasks(
    session: SessionDep, current_user: CurrentUser, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> list[Task]:
    return session.exec(
        select(Task)
        .where(Task.user_id == current_user)
        .order_by(col(Task.created_at).desc(), col(Task.id).desc())
        .limit(limit)
    ).all()


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
def create_task(task: TaskCreate, session: SessionDep, current_user: CurrentUser) -> Task:
    if not session.get(User, current_user):
        session.add(User(id=current_user))
        session.flush()
    db_task = Task.model_validate(task, update={"user_id": current_user})
    session.add(db_task)
    session.commit()
    session.refresh(db_task)
    return db_task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
def read_task(task_id: int, session: SessionDep, current_user: CurrentUser) -> Task:
    task = session.get(Task, task_id)
    if not task or task.user_id != current_user:
        raise HTTPException(404, "Task not found")
    return task


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
def complete_task(task_id: int, session: SessionDep, current_user: CurrentUser) -> Task:
    task = session.get(Task, task_id)
    if not task or task.user_id != current_user:
        raise HTTPException(404, "Task not found")
    task.status = "incomplete" if task.status == "complete" else "complete"
    task.updated_at = datetime.now(UTC)
    session.add(task)
    session.commit()
    session.refresh(task)
    return task


@app.exception_handler(StarletteHTTPException)
async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


@app.exception_handler(RequestValidationError)
async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse({"error": "; ".join(fault["msg"] for fault in error.errors())}, 400)
