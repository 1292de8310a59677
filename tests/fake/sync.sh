#!/bin/sh
# sync of the fake: notes that a file system was written out, and waits as long as its
# device does not write.
PATH=/usr/bin:/bin
while read -r mounted at; do
	[ "$mounted" = "$2" ] || continue
	echo "${FAKE_WHO}sync" >>"$at/journal"
	while [ -e "$at/unwritten" ]; do sleep 0.02; done
done <"$FAKE_CONTAINER/mounts"
