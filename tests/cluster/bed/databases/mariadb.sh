#!/bin/sh
# Starts MariaDB, with the variables and the layout of its usual images: it
# begins as root, for the volumes, and goes on as the user of the database.
set -eu
data=${MARIADB_DATADIR:-/var/lib/mysql/data}
log=${MARIADB_LOGDIR:-$data}

mkdir -p "$data" "$log"
chown mysql:mysql "$data" "$log"
if [ ! -d "$data/mysql" ]; then
  mariadb-install-db --user=mysql --datadir="$data" --innodb-log-group-home-dir="$log" \
    --auth-root-authentication-method=normal --skip-test-db "$@" > /dev/null
  first=/run/mysqld/first.sql
  (umask 077 && cat > "$first" <<SQL
ALTER USER root@localhost IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';
CREATE USER root@'%' IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';
GRANT ALL PRIVILEGES ON *.* TO root@'%' WITH GRANT OPTION;
SQL
  )
  chown mysql:mysql "$first"
  set -- "$@" --init-file="$first"
fi
exec mariadbd --user=mysql --datadir="$data" --innodb-log-group-home-dir="$log" --socket=/run/mysqld/mysqld.sock "$@"
