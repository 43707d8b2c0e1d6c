#!/bin/sh
# As root: reads the password, which belongs to another user. Then as postgres: the database where there is none, by a server
# that listens on its socket only.
set -eu
if [ "$(id -u)" = 0 ]; then
    export POSTGRES_PASSWORD="$(cat "$POSTGRES_PASSWORD_FILE")"
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    chown postgres: "$(dirname "$PGDATA")"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    file=$(mktemp)
    echo "$POSTGRES_PASSWORD" >"$file"
    initdb --username="$POSTGRES_USER" --pwfile="$file" --auth-host=scram-sha-256 >/dev/null
    rm "$file"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -w start -o "-c listen_addresses=''" >/dev/null
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -w stop -m fast >/dev/null
fi
unset POSTGRES_PASSWORD
exec postgres -c listen_addresses='*'
