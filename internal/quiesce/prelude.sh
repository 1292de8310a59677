# What all scripts here have in common. POSIX sh; tried with dash, busybox ash
# and bash. The subshell is for dash, which leaves on an option it does not
# know; bash breaks off `read` for a trapped signal only in POSIX mode.
(set -o posix) 2>/dev/null && set -o posix
command= environment= timer= signalled=
me=$$
trap 'signalled=1' TERM HUP INT
trap : PIPE

# note LINE: a line of the command (:) or of its environment (=), which arrive as
# shell words that are already quoted.
note() {
	case $1 in
	:*) command="$command${1#:}
" ;;
	=*) environment="$environment${1#=}
" ;;
	esac
}

# The command runs as the container runtime would run it: no function and no
# builtin. Its environment is set here and not by env(1), in whose arguments
# everybody could read it.
run() {
	eval "$environment"
	eval "set -- $command"
	exec "$@"
}

# freezing reports whether a program is at work in this container that freezes the
# file system at $place, or any if that is empty. FIFREEZE waits for writers, and a
# killed program that waits in it ends only when the kernel has completed the freeze.
place=
freezing() {
	for process in /proc/[0-9]*; do
		name= args=
		IFS= read -r name <"$process/comm" || continue
		case $name in
		fsfreeze | xfs_freeze | xfs_io | busybox) IFS= read -r args <"$process/cmdline" ;;
		esac
		case $name:$args in # nothing stands between the arguments
		*freeze: | *freeze-u* | *freeze--u* | xfs_io:*thaw*) ;;
		*freeze:*freeze*"$place" | xfs_io:*freeze*"$place" | busybox:*busyboxfsfreeze*"$place") return 0 ;;
		*freeze:*freeze-f/* | *freeze:*freeze--freeze/*) ;; # another file system
		*freeze:*) return 0 ;; # busybox runs it in the process of a shell, whose arguments these are
		esac
	done 2>/dev/null
	return 1
}

# arm N: signal this shell in N seconds, and again each second after, in case
# the first signal fell between two reads. While a background process is
# forked, TERM has its default action: a shell forgets a trapped signal that
# reaches its child before the child has put its traps away. The trap takes the
# sleep along, because the first process of a container may reap no orphans. It
# keeps no descriptor of the script open: the connection ends when the last one does.
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
