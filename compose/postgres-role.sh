#!/usr/bin/env bash
# Runs once, on an empty volume: an ordinary role that owns the database. A superuser would stand above row-level security,
# which is the second wall between brands.
set -euo pipefail

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat /run/secrets/database_password`
create role tributary login nosuperuser nobypassrls nocreatedb nocreaterole password :'password';
alter database tributary owner to tributary;
alter schema public owner to tributary;
SQL
