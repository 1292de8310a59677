#!/bin/sh
# Starts PostgreSQL, with the variables and the layout of its usual images: it
# begins as root, for the volumes, and goes on as the user of the database.
set -eu
: "${PGDATA:=/var/lib/postgresql/data/pgdata}"
: "${POSTGRES_USER:=postgres}"
wal=${POSTGRES_INITDB_WALDIR:-}
as="setpriv --reuid=postgres --regid=postgres --init-groups --no-new-privs"

mkdir -p "$PGDATA"
chown postgres:postgres "$PGDATA" "$(dirname "$PGDATA")"
chmod 0700 "$PGDATA"
if [ -n "$wal" ]; then
  chown postgres:postgres "$(dirname "$wal")"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  password=/run/postgresql/password
  (umask 077 && printf '%s\n' "$POSTGRES_PASSWORD" > "$password")
  chown postgres:postgres "$password"
  # A password is asked for on the local socket, too.
  $as initdb --pgdata="$PGDATA" ${wal:+--waldir="$wal"} --username="$POSTGRES_USER" --pwfile="$password" \
    --auth=scram-sha-256 --encoding=UTF8 --no-locale
  rm "$password"
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
fi
exec $as postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql "$@"
