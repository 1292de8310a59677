#!/bin/sh
# sync of the fake: notes that a file system was written out.
PATH=/usr/bin:/bin
while read -r mounted at; do [ "$mounted" != "$2" ] || echo "${FAKE_WHO}sync" >>"$at/journal"; done <"$FAKE_CONTAINER/mounts"
