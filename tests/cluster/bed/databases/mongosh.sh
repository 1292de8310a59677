#!/bin/sh
# Stands in for MongoDB's shell, since Debian has no MongoDB: it writes down how it
# is called and what it is told, and keeps the lock as a directory. It takes the
# password that $MONGOSH_PASSWORD has and no other, as an argument or, from
# Stillpoint's recipe, in the environment. Without --eval it reads statements, a line
# each, as a held session gives them.
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
  esac
  shift
done
if [ "$password" != "${MONGOSH_PASSWORD:-}" ]; then
  echo 'MongoServerError: Authentication failed.' >&2
  exit 1
fi
lock() {
  mkdir "$dir/lock"
  sync -f "$dir/lock"
}
case $script in
*fsyncLock*) lock ;;
*fsyncUnlock*) rmdir "$dir/lock" 2> /dev/null || true ;;
esac
if [ -n "$script" ]; then
  echo '{ ok: 1 }'
  exit 0
fi
held=
while IFS= read -r line; do
  case $line in
  *'db.fsyncLock()'*)
    lock
    held=yes
    ;;
  'try { if (held)'*)
    [ -z "$held" ] || rmdir "$dir/lock"
    held=
    ;;
  *'db.fsyncUnlock()'*)
    rmdir "$dir/lock"
    held=
    ;;
  'print('*)
    line=${line#*stillpoint: }
    printf 'admin> \nstillpoint: %s\n' "${line%%\"*}"
    ;;
  'quit('*) exit 0 ;;
  esac
done
