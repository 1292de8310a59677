# The common part of all scripts: POSIX sh, tested with dash, busybox ash and bash. The
# subshell is needed since dash exits on an unknown option. Only in POSIX mode does bash
# interrupt `read` for a trapped signal.
(set -o posix) 2>/dev/null && set -o posix
command= environment= timer= signalled=
me=$$
trap 'signalled=1' TERM HUP INT
trap : PIPE

# note LINE: add a line to the command (:) or its environment (=). Both are quoted shell
# words.
note() {
	case $1 in
	:*) command="$command${1#:}
" ;;
	=*) environment="$environment${1#=}
" ;;
	esac
}

# run runs the command as the container runtime would, without functions and builtins.
# It does not use env(1), whose arguments appear in the process list.
run() {
	eval "$environment"
	eval "set -- $command"
	exec "$@"
}

# freezing reports whether a program in this container is freezing the file system at
# $place, or any file system if $place is empty. FIFREEZE waits for writers, and a killed
# program that waits in it ends only when the kernel has completed the freeze.
place=
freezing() {
	for process in /proc/[0-9]*; do
		name= args=
		IFS= read -r name <"$process/comm" || continue
		case $name in
		fsfreeze | xfs_freeze | xfs_io | busybox) IFS= read -r args <"$process/cmdline" ;;
		esac
		case $name:$args in # read drops the NULs between arguments
		*freeze: | *freeze-u* | *freeze--u* | xfs_io:*thaw*) ;;
		*freeze:*freeze*"$place" | xfs_io:*freeze*"$place" | busybox:*busyboxfsfreeze*"$place") return 0 ;;
		*freeze:*freeze-f/* | *freeze:*freeze--freeze/*) ;; # another file system
		*freeze:*) return 0 ;; # busybox runs it in a shell's process, with the shell's arguments
		esac
	done 2>/dev/null
	return 1
}

# arm N: signal this shell in N seconds, and again each second after that, since a signal
# between two reads has no effect. TERM has its default action during the fork: the child
# would lose a trapped signal that arrives before it has reset its traps. The child's
# trap kills its sleep, since PID 1 of a container may reap no orphans. The child closes
# the script's descriptors, since the connection ends only when all are closed.
arm() {
	disarm
	trap - TERM
	(
		trap '[ -z "$!" ] || { kill -KILL $!; wait $!; }; exit' TERM
		sleep "$1" &
		wait $!
		while kill -TERM "$me"; do
			sleep 1 &
			wait $!
		done
	) </dev/null >/dev/null 2>&1 3>&- 4>&- &
	timer=$!
	trap 'signalled=1' TERM
}
disarm() {
	[ -z "$timer" ] || { kill -TERM "$timer"; wait "$timer"; } 2>/dev/null
	timer=
}
