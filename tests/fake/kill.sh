kill() {
	for stillpoint_pid in "$@"; do
		[ ! -e "$FAKE_NODE/uninterruptible/$stillpoint_pid" ] || return 0
	done
	command kill "$@"
}
