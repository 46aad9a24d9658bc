"""Django REST framework as its documentation writes it: a model, a model serializer, a view set and a router."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
