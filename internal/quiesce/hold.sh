# Keeps the session of a database client open, so that the database keeps the session's
# locks. It releases them when the session ends for any reason.
#
# Standard input, one line each:
#   :TEXT      a line of the client's command
#   =TEXT      a line of its environment
#   <TEXT      a line of its begin statements
#   >TEXT      a line of its end statements
#   armed      start the client
#   client PID the answer to `armed PID`
#   prepare N, hold N  end the client in N seconds at the latest
#   begin      send the begin statements
#   thaw       send the end statements
#   release    end the client
# Standard output: armed PID, holding, thawing (confirms thaw if the client runs), ended
# CODE when the client has ended, and the client's output. Its standard error ends with
# `stillpoint: end`.
begin= end=
while IFS= read -r line; do
	case $line in
	:* | =*) note "$line" ;;
	'<'*) begin="$begin${line#<}
" ;;
	'>'*) end="$end${line#>}
" ;;
	armed) break ;;
	esac
done
[ "$line" = armed ] || exit 0

# The left side of the pipe reads requests, the right side runs the client. Each has the
# PID of the other. A subshell does not know its own PID and has no traps.
exec 3>&1 4<&0
{
	me=$(exec sh -c 'echo $PPID')
	trap 'signalled=1' TERM HUP INT
	trap : PIPE
	echo "$me"
	client=
	while [ -z "$signalled" ] && IFS= read -r line <&4; do
		case $line in
		'client '*) client=${line#client } ;;
		'prepare '* | 'hold '*)
			arm "${line#* }"
			echo holding >&3
			;;
		begin) printf '%s' "$begin" ;;
		thaw)
			kill -0 "$client" 2>/dev/null && echo thawing >&3
			printf '%s' "$end"
			;;
		release) break ;;
		esac
	done
	disarm
	# A client that waits for its server does not see the end of its input.
	exec >&-
	for pause in 1 1 0; do
		[ -n "$client" ] && kill -0 "$client" || break
		sleep $pause
	done 2>/dev/null
	if [ -n "$client" ] && kill -TERM "$client" 2>/dev/null; then
		sleep 1
		kill -KILL "$client" 2>/dev/null
	fi
} | {
	IFS= read -r listener
	exec 5<&0 4<&-
	(run) <&5 3>&- 5<&- &
	client=$!
	exec 5<&- <&-
	echo "armed $client" >&3
	wait "$client"
	code=$?
	echo 'stillpoint: end' >&2
	echo "ended $code" >&3
	# Repeated, since a signal between two reads has no effect.
	while kill -TERM "$listener" 2>/dev/null; do sleep 1; done
}
exit 0
