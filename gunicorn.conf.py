"""How gunicorn runs the service; it reads this file by itself when started in the project folder."""

import os
import sys

from config import ConfigurationError, load_settings, logging_config

try:
    settings = load_settings(os.environ)
except ConfigurationError as error:
    # Here, before a worker exists, so that the service ends with this one line.
    sys.exit(f"todo: {error}")

worker_class = "gthread"
# WEB_CONCURRENCY is gunicorn's own name for the number of workers. A container may see far more cores than it may
# use, hence the ceiling.
workers = int(os.environ.get("WEB_CONCURRENCY") or max(2, min(len(os.sched_getaffinity(0)), 4)))
# Each worker's connection pool is as large as this (todo/database.py): no thread waits for a connection.
threads = settings.threads
# Every worker builds its own app, hence its own pool: a connection shared across fork would mix up answers.
preload_app = False

# A worker that shows no life for this long is replaced. What a request may take is bounded by the database
# deadline (todo/database.py), far below.
timeout = 30
graceful_timeout = 30
keepalive = 5
# Room for a cursor and a long ?q= ; gunicorn itself answers 414 beyond.
limit_request_line = 8190

# On by default at a path per user, where two instances collide.
control_socket_disable = True
logconfig_dict = logging_config(settings)
