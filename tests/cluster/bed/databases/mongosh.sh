#!/bin/sh
# Stands in for MongoDB's shell, which Debian does not have: it writes down how
# it is called, and keeps the lock as a file. It takes the password of
# $MONGOSH_PASSWORD only.
set -eu
dir=${MONGOSH_DIR:-/data}
password=
script=
for word; do
  case $word in
  --password=*) password=${word#*=} ;;
  --eval=*) script=${word#*=} ;;
  esac
done
printf '%s' "$(date -u +%T.%N)" >> "$dir/calls"
printf ' [%s]' "$@" >> "$dir/calls"
echo >> "$dir/calls"
if [ "$password" != "${MONGOSH_PASSWORD:-}" ]; then
  echo 'MongoServerError: Authentication failed.' >&2
  exit 1
fi
case $script in
*fsyncLock*) mkdir "$dir/lock" ;;
*fsyncUnlock*) rmdir "$dir/lock" ;;
esac
echo '{ ok: 1 }'
