# A guard of Stillpoint: it waits beside a frozen application and undoes the
# freeze when told to, when its deadline passes and when its standard input
# ends, which is what happens when whoever froze the application dies.
#
# Standard input, a line each:
#   :TEXT      a line of the post command
#   =TEXT      a line of its environment
#   armed      the command is complete
#   prepare N  pre commands begin: from now on the freeze is ours to undo, in N
#              seconds at the latest
#   hold N     pre commands have ended: as above, with a new limit
#   thaw       run the post command now
#   release    there is nothing to undo: leave
# Standard output, a line each: armed, holding, thawed, failed CODE, expired CODE.
# What the post command prints goes to standard error, which `stillpoint: end`
# closes before each of the last three.
held=
while [ -z "$signalled" ] && IFS= read -r line; do
	case $line in
	:* | =*) note "$line" ;;
	armed) echo armed ;;
	'prepare '* | 'hold '*)
		held=${line%% *}
		arm "${line#* }"
		echo holding
		;;
	thaw)
		(run </dev/null) >&2
		code=$?
		echo 'stillpoint: end' >&2
		if [ $code = 0 ]; then
			disarm
			echo thawed
			exit 0
		fi
		echo "failed $code"
		;;
	release)
		disarm
		exit 0
		;;
	esac
done
disarm
[ -n "$held" ] || exit 0

# Nobody may be listening any more: output would only break the command. A pre
# command that is still being killed could freeze after a thaw that came too
# early, so the first one is not trusted then.
if [ $held = prepare ]; then
	(run) </dev/null >/dev/null 2>&1
	sleep 3
fi
for pause in 1 1 1 2 2 3 5 5 5 0; do
	(run) </dev/null >/dev/null 2>&1
	code=$?
	[ $code != 0 ] || break
	sleep $pause
done
echo 'stillpoint: end' >&2
echo "expired $code"
exit $code
