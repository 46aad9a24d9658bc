-- PostgreSQL's image runs this once, on an empty volume. It creates the service's role, which bypasses no policy and owns its database.
\getenv password DATABASE_PASSWORD
CREATE ROLE todo LOGIN PASSWORD :'password';
CREATE DATABASE todo OWNER todo;
