# A guard of Stillpoint: it waits beside a frozen application and undoes the
# freeze when told to, when its deadline passes and when its standard input
# ends, which is what happens when whoever froze the application dies.
#
# Standard input, a line each:
#   :TEXT      a line of the post command
#   =TEXT      a line of its environment
#   place PATH the command thaws the file system at PATH and does nothing else
#   armed      the command is complete
#   prepare N  pre commands begin: from now on the freeze is ours to undo, in N
#              seconds at the latest
#   hold N     pre commands have ended: as above, with a new limit
#   thaw       run the post command now
#   release    there is nothing to undo: leave. Signal USR1 means the same.
# Standard output, a line each: armed PID, holding, thawing when it was told to,
# thawed, failed CODE, expired CODE. CODE is followed by "freezing" if a freeze was
# under way when the command started. What the post command prints goes to standard
# error, which `stillpoint: end` closes before each of the last three.
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

# Nobody may be listening any more: output would only break the command. A pre
# command that is still being killed, or waits in the kernel, can freeze after a
# thaw that came too early.
if [ -n "$place" ]; then
	# A thaw that found the file system frozen is never repeated: the next would undo
	# the freeze of another program. That it is not frozen is trusted once no freeze
	# can be under way any more.
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
