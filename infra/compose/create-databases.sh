#!/bin/sh
# Run once by PostgreSQL's image on an empty volume: creates a database and a user for each server.
set -eu

for name in prefect mlflow; do
    case "$name" in
        prefect) password=$PREFECT_DB_PASSWORD ;;
        mlflow) password=$MLFLOW_DB_PASSWORD ;;
    esac
    psql --set ON_ERROR_STOP=1 --set name="$name" --set password="$password" --username postgres --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
# Prefect searches names by trigrams; only a superuser may add the extension.
psql --set ON_ERROR_STOP=1 --username postgres --dbname prefect --command 'CREATE EXTENSION IF NOT EXISTS pg_trgm'
