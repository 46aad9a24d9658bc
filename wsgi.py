"""The entry point of `gunicorn wsgi:app` and of the `flask` command."""

from todo import create_app

app = create_app()
