"""The application factory, and nothing else; no module of the package imports from here."""

import os
import sys
from functools import partial
from logging.config import dictConfig

from flask import Flask

from config import ConfigurationError, Settings, load_settings, logging_config, refusal
from todo import identity
from todo.db import connections, db, failures, migrate, observation, search, types
from todo.db.commands import blp as database_blueprint
from todo.db.figures import find_figures, number_of
from todo.db.readiness import check_database, revision_wanted
from todo.identity import commands as identity_commands
from todo.pruning import blp as pruning_blueprint
from todo.pruning import count_prunable
from todo.tasks.commands import blp as seed_blueprint
from todo.tasks.views import blp as tasks_blueprint
from todo.users.commands import blp as users_blueprint
from todo.web import addresses, cors, health, metrics, places, rate_limits, request_log, swagger
from todo.web import app as web
from todo.web.openapi import api

PUBLIC_ENDPOINTS = frozenset({"health.Live", "health.Ready", "api-docs.openapi_json"})


def create_app(settings: Settings | None = None) -> Flask:
    """Return the app, ready for a WSGI server. Opens no connection.

    Without `settings` it reads the environment. If a variable is invalid, the process ends with one line on stderr and
    status 4, on which gunicorn ends too. With invalid `settings` it raises ConfigurationError.
    """
    if settings is not None:
        return _build(settings)
    try:
        return _build(load_settings(os.environ))
    except ConfigurationError as error:
        print(refusal(str(error), os.environ), file=sys.stderr)
        sys.exit(4)


def _build(settings: Settings) -> Flask:
    dictConfig(logging_config(settings))
    app = web.App(__name__, static_folder=None)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=connections.engine_options(settings),
        IS_DATABASE_DEFAULT=settings.is_database_default,
        ROWS_PER_USER={"tasks": settings.max_tasks} if settings.max_tasks else {},
        API_TITLE="Todo API",
        API_VERSION="1.2.0",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        API_SPEC_OPTIONS={
            "info": {
                "description": "Tasks that belong to users. Every error is an object with one member, `error`.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
        },
    )
    web.init_app(app)
    web.translate(app, failures.DATABASE_ERRORS, failures.as_failure)
    health.init_app(app, check_database)
    db.init_app(app)
    with app.app_context():
        connections.init_app(app, db.engine, request_log.current_request_id)
        types.init_app(db.engine)
        search.init_app(db.engine)
    request_log.init_app(app)
    migrate.init_app(app, db)
    cors.init_app(app, settings)
    public = PUBLIC_ENDPOINTS | swagger.ENDPOINTS if settings.is_docs_on else PUBLIC_ENDPOINTS
    if settings.metrics_token:
        # /metrics checks its own token, which belongs to no user.
        public |= {metrics.ENDPOINT}
    key_set = identity.init_app(app, settings, public=public, on_identified=connections.act_for)
    limits = rate_limits.init_app(app, settings)
    with app.app_context():
        places.init_app(app, settings, db.engine, connections.was_lost_since)
        sources = metrics.Sources(
            observe_database=partial(observation.observe, db.engine),
            key_set=key_set,
            limits=limits,
            revision_wanted=number_of(revision_wanted()),
            ask=partial(find_figures, app, count_prunable),
        )
    metrics.init_app(app, settings, sources)
    addresses.init_app(app, settings)
    swagger.init_app(app, settings)
    api.init_app(app)
    api.register_blueprint(health.blp)
    api.register_blueprint(tasks_blueprint)
    app.register_blueprint(database_blueprint)
    app.register_blueprint(pruning_blueprint)
    app.register_blueprint(seed_blueprint)
    app.register_blueprint(users_blueprint)
    identity_commands.init_app(app, settings)
    return app
