# A guard undoes a freeze on request, when its deadline passes, or when its standard
# input ends, which is how the death of the plugin's process shows in the container.
#
# Standard input, one line each:
#   :TEXT      a line of the post command
#   =TEXT      a line of its environment
#   place PATH the command only thaws the file system at PATH
#   armed      the command is complete
#   prepare N  pre commands begin: undo the freeze in N seconds at the latest
#   hold N     pre commands have ended: as above, with a new limit
#   thaw       run the post command now
#   release    exit without running the post command, as on signal USR1
# Standard output, one line each: armed PID, holding, thawing (confirms thaw), thawed,
# failed CODE, expired CODE. CODE is followed by "freezing" if a freeze was running when
# the command started. The output of the post command goes to standard error. The line
# `stillpoint: end` ends it, before each of the last three answers.
held= left=
trap 'left=1' USR1
while [ -z "$signalled$left" ] && IFS= read -r line; do
	case $line in
	:* | =*) note "$line" ;;
	'place '*) place=${line#place } ;;
	armed) echo "armed $$" ;;
	'prepare '* | 'hold '*)
		held=${line%% *}
		arm "${line#* }"
		echo holding
		;;
	thaw)
		echo thawing
		also=
		[ "$held" != prepare ] || ! freezing || also=' freezing'
		(run </dev/null) >&2
		code=$?
		echo 'stillpoint: end' >&2
		if [ $code = 0 ] && [ -n "$place" -o -z "$also" ]; then
			disarm
			echo thawed
			exit 0
		fi
		echo "failed $code$also"
		;;
	release)
		disarm
		exit 0
		;;
	esac
done
disarm
[ -n "$held" ] && [ -z "$left" ] || exit 0

# The connection may be lost, and writing to it would make the command fail. A pre
# command that is being killed, or waits in the kernel, can freeze after an early thaw.
if [ -n "$place" ]; then
	# A successful thaw is never repeated: the next one would undo the freeze of another
	# program. "Not frozen" counts only once no freeze can be running any more.
	doubt=0 tries=10
	[ $held = hold ] || doubt=3
	while :; do
		[ $held = hold ] || ! freezing || [ $doubt -gt 0 ] || doubt=1
		said=$( (run) </dev/null 2>&1)
		code=$?
		case $code:$said in
		0:*) break ;;
		*'Invalid argument'*)
			code=0
			[ $doubt -gt 0 ] || break
			doubt=$((doubt - 1))
			;;
		*)
			tries=$((tries - 1))
			[ $tries -gt 0 ] || break
			;;
		esac
		sleep 1
	done
else
	if [ $held = prepare ]; then
		(run) </dev/null >/dev/null 2>&1
		sleep 3
		while freezing; do sleep 1; done
	fi
	for pause in 1 1 1 2 2 3 5 5 5 0; do
		(run) </dev/null >/dev/null 2>&1
		code=$?
		[ $code != 0 ] || break
		sleep $pause
	done
fi
echo 'stillpoint: end' >&2
echo "expired $code"
exit $code
