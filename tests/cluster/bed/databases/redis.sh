#!/bin/sh
# Starts Redis: as root at first, for the volume, and then as its own user.
set -eu
dir=${REDIS_DIR:-/data}
mkdir -p "$dir"
chown redis:redis "$dir"
cd "$dir"
umask 077
exec setpriv --reuid=redis --regid=redis --init-groups --no-new-privs \
  redis-server --dir "$dir" --protected-mode no ${REDIS_PASSWORD:+--requirepass "$REDIS_PASSWORD"} "$@"
