"""How gunicorn runs the peers that are WSGI: the worker settings of the service's own gunicorn.conf.py."""

worker_class = "gthread"
workers = 2
threads = 8
timeout = 30
graceful_timeout = 30
keepalive = 5
control_socket_disable = True
