# The service as an image; compose.yaml runs it beside PostgreSQL and nginx. The newest Python that the suite runs on,
# and the newest Debian.

FROM python:3.13-slim-trixie AS build
WORKDIR /srv
COPY requirements.txt ./
# Wheels alone, by their hashes: there is nothing to compile, and nothing of a package runs while it is installed.
# The lock is complete, so pip need not resolve; then it checks that nothing is missing.
RUN python -m venv --without-pip venv \
    && python -m pip --python venv install --no-cache-dir --disable-pip-version-check --no-input \
    --no-deps --require-hashes --only-binary :all: --requirement requirements.txt \
    && python -m pip --python venv --disable-pip-version-check check

FROM python:3.13-slim-trixie
# Nothing is to be installed any more.
RUN python -m pip uninstall --yes pip setuptools wheel
# Without .flaskenv: here the flask command takes nobody's word for who is calling, either.
ENV PATH="/srv/venv/bin:$PATH" \
    PORT=8000 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/todo
COPY --from=build /srv/venv /srv/venv
COPY config.py gunicorn.conf.py wsgi.py ./
COPY migrations ./migrations
COPY todo ./todo
# A number, which Kubernetes can tell from root. All files are root's.
USER 10001:10001
EXPOSE 8000
# Whether the process lives: a database that is away is no reason to begin anew. urllib would ask a proxy of the host.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=4); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]
# Workers show that they live by touching a file: in memory, so that no slow disk, and no read-only one, is in the way.
CMD ["gunicorn", "--worker-tmp-dir", "/dev/shm", "wsgi:app"]
