# Runs one command of Stillpoint that arrives on standard input, so that it
# stands in no process list and no audit log. The command is prepared while
# nothing is frozen yet, and started by a single line.
#
# Standard input, a line each:
#   :TEXT      a line of the command
#   =TEXT      a line of its environment
#   place PATH the command freezes or thaws the file system at PATH and does nothing
#              else
#   armed      the command is complete
#   run N      run it, N seconds at the most
#   undo N     as run; it is a post command
# Standard output: armed, then ended CODE when the command and every freeze that it
# has begun have ended, however long after its limit that is. A post command's CODE
# is followed by "freezing" if a freeze was under way when it started. What the
# command prints goes to standard error, which ends with `stillpoint: end`. When
# standard input ends, a command that still runs is killed: TERM, and KILL a second
# later. Code 124 says so, as in timeout(1).
line= also=
while IFS= read -r line; do
	case $line in
	:* | =*) note "$line" ;;
	'place '*) place=${line#place } ;;
	armed) echo armed ;;
	'run '*) break ;;
	'undo '*)
		freezing && also=' freezing'
		break
		;;
	esac
done
case $line in
'run '* | 'undo '*) ;;
*) exit 0 ;;
esac

exec 3<&0 </dev/null
trap - TERM
(run) 3<&- >&2 &
child=$!
(
	while IFS= read -r line; do :; done
	kill -TERM $$
) <&3 >/dev/null 2>&1 &
listener=$!
exec 3<&-
arm "${line#* }"

wait "$child"
code=$?
if [ -n "$signalled" ]; then
	kill -TERM "$child" 2>/dev/null
	arm 1
	signalled=
	wait "$child" 2>/dev/null
	[ -z "$signalled" ] || kill -KILL "$child" 2>/dev/null
	# A signal breaks off `wait`, so that its end is not yet the child's.
	while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null; done
	case $line in
	run*) while freezing; do sleep 1; done ;;
	esac
	code=124
fi
disarm
{ kill -KILL "$listener"; wait "$listener"; } 2>/dev/null
echo 'stillpoint: end' >&2
echo "ended $code$also"
exit 0
