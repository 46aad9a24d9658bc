"""The Flask extensions that the whole package shares. create_app binds them to an app."""

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase


class Model(DeclarativeBase):
    """The base class of every model; its metadata is that of `db`.

    It replaces db.Model, which type checkers cannot see. Every constraint gets a name, so that migrations can name it.
    """

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


db = SQLAlchemy(model_class=Model)
migrate = Migrate()
