-- PostgreSQL's image runs this once, on an empty volume. It creates the service's role, which bypasses no policy and owns its database.
\getenv password DATABASE_PASSWORD
CREATE ROLE todo LOGIN PASSWORD :'password';
CREATE DATABASE todo OWNER todo;
-- By default PostgreSQL logs each statement that fails, with the titles in it, and the values that violate a constraint, such as emails.
-- Only a superuser can change this.
ALTER ROLE todo SET log_min_error_statement = panic;
ALTER ROLE todo SET log_error_verbosity = terse;
