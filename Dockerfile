# The image of the service. compose.yaml runs it with PostgreSQL and nginx. It has the newest Python and the newest Debian that CI
# tests.

FROM python:3.13-slim-trixie AS build
WORKDIR /srv
COPY requirements.txt ./
# Only wheels, checked by hash: nothing is compiled, and no code of a package runs during installation.
# The lock is complete, so pip does not resolve. Then pip checks that nothing is missing.
RUN python -m venv --without-pip venv \
    && python -m pip --python venv install --no-cache-dir --disable-pip-version-check --no-input \
    --no-deps --require-hashes --only-binary :all: --requirement requirements.txt \
    && python -m pip --python venv --disable-pip-version-check check

FROM python:3.13-slim-trixie
# Nothing is installed from here on.
RUN python -m pip uninstall --yes pip setuptools wheel
# The image has no .flaskenv, so the flask command does not switch authentication off.
ENV PATH="/srv/venv/bin:$PATH" \
    PORT=8000 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/todo
COPY --from=build /srv/venv /srv/venv
COPY config.py gunicorn.conf.py wsgi.py ./
COPY migrations ./migrations
COPY todo ./todo
# A number, so that Kubernetes sees that it is not root. Root owns all files.
USER 10001:10001
EXPOSE 8000
# Checks the process only: a restart does not repair a database. urllib would use the proxy settings of the host.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=4); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]
# gunicorn workers touch a file to show that they live. In memory, no slow or read-only disk gets in the way.
CMD ["gunicorn", "--worker-tmp-dir", "/dev/shm", "wsgi:app"]
