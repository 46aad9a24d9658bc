"""create_app: the start of a process."""

from pathlib import Path

import pytest

from todo import create_app


def test_without_settings_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/todo.db")
    monkeypatch.setenv("IDENTITY_PROVIDER", "development")
    app = create_app()
    assert app.config["SQLALCHEMY_DATABASE_URI"].database == f"{tmp_path}/todo.db"
    assert not (tmp_path / "todo.db").exists()


def test_a_bad_environment_ends_the_process_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///todo.db")
    monkeypatch.setenv("IDENTITY_PROVIDER", "nowhere:provider")
    with pytest.raises(SystemExit) as caught:
        create_app()
    # gunicorn takes any other status of a worker for a reason to start the next.
    assert caught.value.code == 4
    message = "IDENTITY_PROVIDER=nowhere:provider cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"
    assert capsys.readouterr().err == f"todo: {message}\n"
