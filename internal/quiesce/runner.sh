# Runs one command of Stillpoint that arrives on standard input, so that it
# stands in no process list and no audit log. The command is prepared while
# nothing is frozen yet, and started by a single line.
#
# Standard input, a line each:
#   :TEXT      a line of the command
#   =TEXT      a line of its environment
#   armed      the command is complete
#   run N      run it, N seconds at the most
# Standard output: armed, then ended CODE. What the command prints goes to
# standard error, which ends with `stillpoint: end`. When standard input ends, a
# command that still runs is killed: TERM, and KILL a second later. Code 124 says
# so, as in timeout(1).
line=
while IFS= read -r line; do
	case $line in
	:* | =*) note "$line" ;;
	armed) echo armed ;;
	'run '*) break ;;
	esac
done
case $line in
'run '*) ;;
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
arm "${line#run }"

wait "$child"
code=$?
if [ -n "$signalled" ]; then
	kill -TERM "$child" 2>/dev/null
	arm 1
	signalled=
	wait "$child" 2>/dev/null
	if [ -n "$signalled" ]; then
		kill -KILL "$child" 2>/dev/null
		wait "$child" 2>/dev/null
	fi
	code=124
fi
disarm
{ kill -KILL "$listener"; wait "$listener"; } 2>/dev/null
echo 'stillpoint: end' >&2
echo "ended $code"
exit 0
