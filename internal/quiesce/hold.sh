# Holds a client of a database open, so that what it has locked stays locked until
# it is told otherwise, or is gone: the lock lives in the client's session, and
# ends with it whatever dies.
#
# Standard input, a line each:
#   :TEXT      a line of the client's command
#   =TEXT      a line of its environment
#   <TEXT      a line of what the client is told to begin with
#   >TEXT      a line of what it is told at the end
#   armed      that is all: start the client
#   client PID the answer to `armed PID`
#   prepare N, hold N  end the client in N seconds at the latest
#   begin      tell the client to begin
#   thaw       tell it to end
#   release    leave
# Standard output: armed PID, holding, thawing when it was told to thaw while the
# client lived, ended CODE when the client has ended, and what the client prints. `stillpoint: end` closes what it prints to standard error.
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

# The left side of the pipe listens to whoever holds the session, the right side
# has the client; each knows the process of the other. A subshell does not know its
# own, and forgets traps.
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
	# A client that waits for its server does not notice that its input has ended.
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
	# Again each second, in case a signal falls between two reads.
	while kill -TERM "$listener" 2>/dev/null; do sleep 1; done
}
exit 0
