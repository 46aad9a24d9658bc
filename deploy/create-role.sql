-- What PostgreSQL's image runs once, on an empty volume: the service's role, which bypasses no policy, owns its database.
\getenv password DATABASE_PASSWORD
CREATE ROLE todo LOGIN PASSWORD :'password';
CREATE DATABASE todo OWNER todo;
