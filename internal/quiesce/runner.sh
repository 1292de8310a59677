# Runs one command. The command arrives on standard input, so that it appears in no
# process list and no audit log. It arrives before the freeze, and one line starts it.
#
# Standard input, one line each:
#   :TEXT      a line of the command
#   =TEXT      a line of its environment
#   place PATH the command only freezes or thaws the file system at PATH
#   armed      the command is complete
#   run N      run the command for N seconds at most
#   undo N     as run, for a post command
# Standard output: armed, then ended CODE when the command and every freeze that it has
# begun have ended, even if that is after the limit. A post command's CODE is followed by
# "freezing" if a freeze was running when the command started. The command's output goes
# to standard error, which ends with `stillpoint: end`. At the limit, and when standard
# input ends, the command is killed: by TERM, and a second later by KILL. CODE is then
# 124, as in timeout(1).
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
	# A signal interrupts `wait` before the child has ended.
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
