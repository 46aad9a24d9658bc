# Read by the `flask` command alone; a variable that is already set wins over this file.
FLASK_APP=wsgi:app
IDENTITY_PROVIDER=development
