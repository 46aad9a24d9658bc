"""Swagger UI at /docs. This process serves all its files. Does nothing if API_DOCS is off.

Knows nothing of the API: the page reads /openapi.json, and calls the service like any other client.
"""

from importlib.resources import files

from flask import (
    Blueprint,
    Flask,
    Response,
    make_response,
    redirect,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import PreconditionFailed

from config import Settings

#: These need no identity.
ENDPOINTS = frozenset({"docs.root", "docs.page", "docs.file"})

#: Allows Swagger UI's own scripts, styles and images, and calls to this service. Allows no inline script or style, and
#: no other host. The `data:` images are in the style sheet.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: The files that the page loads, by the package that has them.
OURS = ("start.js",)
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css", "index.css", "favicon-32x32.png")


def init_app(app: Flask, settings: Settings) -> None:
    """Serve the page and its files, and redirect / to it, if the settings say so."""
    if not settings.is_docs_on:
        return
    docs = Blueprint("docs", __name__, template_folder=".")
    swagger_ui = str(files("flask_swagger_ui") / "dist")
    folders = dict.fromkeys(OURS, docs.root_path) | dict.fromkeys(SWAGGER_UI, swagger_ui)

    def checked(response: Response) -> Response:
        if response.status_code == PreconditionFailed.code:
            # The response still has the file open.
            response.close()
            raise PreconditionFailed
        return response

    @docs.get("/")
    def root() -> ResponseReturnValue:
        return redirect(url_for("docs.page"))

    @docs.get("/docs")
    def page() -> Response:
        # Browsers store it, but revalidate it by its entity tag, like its files: an update shows at once.
        response = make_response(render_template("index.html"))
        response.cache_control.no_cache = True
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.add_etag()
        response.make_conditional(request)
        return checked(response)

    def file(name: str) -> Response:
        return checked(send_from_directory(folders[name], name))

    # Only these files: any other path is an unknown route.
    for name in folders:
        docs.add_url_rule(f"/docs/{name}", view_func=file, defaults={"name": name})
    app.register_blueprint(docs)
