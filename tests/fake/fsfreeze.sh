#!/bin/sh
# fsfreeze of the fake: freezes and thaws by directories, as the kernel does by
# ioctl(FIFREEZE) and ioctl(FITHAW). A freeze that is stalled answers no signal.
PATH=/usr/bin:/bin
trap '' TERM HUP INT PIPE
# The processes of a container are those that it finds below /proc.
ln -s "/proc/$$" "$FAKE_CONTAINER/proc/$$" 2>/dev/null && trap 'rm -f "$FAKE_CONTAINER/proc/$$"' EXIT
fs=
while read -r mounted at; do [ "$mounted" != "$2" ] || fs=$at; done <"$FAKE_CONTAINER/mounts"
if [ -z "$fs" ]; then
	echo "fsfreeze: cannot open $2: No such file or directory" >&2
	exit 1
fi
note() { echo "$FAKE_WHO$1" >>"$fs/journal"; }
case $1 in
--freeze | -f)
	note freeze
	if ! mkdir "$fs/freezing" 2>/dev/null; then
		note busy
		echo "fsfreeze: $2: freeze failed: Device or resource busy" >&2
		exit 1
	fi
	touch "$FAKE_NODE/uninterruptible/$$"
	while [ -e "$fs/stalled" ]; do sleep 0.02; done
	mkdir "$fs/frozen"
	note frozen
	rm -f "$FAKE_NODE/uninterruptible/$$"
	;;
--unfreeze | -u)
	if ! rmdir "$fs/frozen" 2>/dev/null; then
		note 'not frozen'
		echo "fsfreeze: $2: unfreeze failed: Invalid argument" >&2
		exit 1
	fi
	rmdir "$fs/freezing"
	note thawed
	;;
*)
	echo "fsfreeze: unknown option $1" >&2
	exit 1
	;;
esac
