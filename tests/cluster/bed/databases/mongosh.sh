#!/bin/sh
# Stands in for MongoDB's shell, since Debian has no MongoDB: it writes down how it
# is called, and keeps the lock as a directory. It takes the password that
# $MONGOSH_PASSWORD has and no other, as an argument or, from Stillpoint's recipe,
# in the environment.
set -eu
dir=${MONGOSH_DIR:-/data}
{
  date -u +%T
  printf ' [%s]' "$@"
  echo
} | tr '\n' ' ' >> "$dir/calls"
echo >> "$dir/calls"
password=${OPTION_PASSWORD:-}
script=
while [ $# -gt 0 ]; do
  case $1 in
  --password=*) password=${1#*=} ;;
  --eval=*) script=${1#*=} ;;
  --eval)
    shift
    script="$1 ${DO:-}"
    ;;
  esac
  shift
done
if [ "$password" != "${MONGOSH_PASSWORD:-}" ]; then
  echo 'MongoServerError: Authentication failed.' >&2
  exit 1
fi
case $script in
*fsyncLock*)
  mkdir "$dir/lock"
  sync -f "$dir/lock"
  ;;
*fsyncUnlock*) rmdir "$dir/lock" 2> /dev/null || true ;;
esac
echo '{ ok: 1 }'
