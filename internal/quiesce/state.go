package quiesce

import (
	"path"
	"slices"
	"strings"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// state is what is known of the effect that a post command undoes. Every path that
// asks whether a thaw is due, whether it is confirmed and whether a freeze was whole
// asks here: the session, its rescue, and the undo of a dead session's record. The
// scripts follow the same rules.
type state int

const (
	// notBegun: no pre command has been started.
	notBegun state = iota
	// pending: one has been started and is not known to have ended. It can still
	// complete: FIFREEZE waits for writers, and SIGKILL waits for FIFREEZE.
	pending
	// frozen: all have ended with success, and nothing has been undone.
	frozen
	// foreign: the kernel has refused the freeze, since another program holds one.
	foreign
	// uncertain: all have ended, and not all with success.
	uncertain
	// thawed: undone, or known not to be frozen.
	thawed
)

// due reports whether the post command has to run.
func (s state) due() bool { return s == pending || s == frozen || s == uncertain }

// of is the state of what a post command undoes, given those of its pre commands.
func of(commands []state) state {
	begun := slices.DeleteFunc(slices.Clone(commands), func(s state) bool { return s == notBegun })
	switch {
	case len(begun) == 0:
		return notBegun
	case slices.Contains(begun, pending):
		return pending
	case slices.ContainsFunc(begun, func(s state) bool { return s != begun[0] }):
		return uncertain
	}
	return begun[0]
}

// ended is the state after a pre command has ended. code is "0" for success.
func ended(command []string, code string, printed *podexec.Output) state {
	output, _ := printed.Tail()
	all := strings.Join(command, " ")
	refused := ThawsFileSystem(command) && hasKernelError(output, "Device or resource busy")
	switch {
	case refused && strings.Count(all, "fsfreeze")+strings.Count(all, "xfs_freeze") == 1: // by this very call
		return foreign
	case refused || code != "0":
		return uncertain
	}
	return frozen
}

// Reply is what one try of a post command came to.
type Reply int

const (
	// failed: it failed, or there was no answer.
	failed Reply = iota
	// Undone means that it succeeded, and a file system was frozen until then.
	Undone
	// ran: a command that thaws a file system among other things succeeded.
	ran
	// notFrozen: the kernel has answered EINVAL. It does so for a file system whose
	// freeze waits for writers, too.
	notFrozen
)

// replyOf reads what a post command has printed. code is "0" for success.
func replyOf(command []string, code string, printed *podexec.Output) Reply {
	output, _ := printed.Tail()
	_, thaws := OnlyFileSystem(command)
	switch {
	case ThawsFileSystem(command) && hasKernelError(output, "Invalid argument"):
		return notFrozen
	case code != "0":
		return failed
	case thaws || !ThawsFileSystem(command):
		return Undone
	}
	return ran
}

// after is the state after a try of the post command. sure says that the pre commands
// were known to have ended before the try, from another source than the state. broken
// says that another program has thawed what was frozen.
func (s state) after(r Reply, sure bool) (next state, broken bool) {
	switch {
	case !s.due() || r == failed:
		return s, false
	case s == pending && !sure && r != Undone:
		return pending, false
	}
	return thawed, s == frozen && r == notFrozen
}

// kernelSaid reports whether fsfreeze or xfs_freeze has printed an error of the kernel,
// and no other one.
func hasKernelError(output, message string) bool {
	found := false
	for line := range strings.Lines(output) {
		if !strings.Contains(line, "freeze") || !strings.Contains(line, ":") {
			continue
		}
		if !strings.Contains(line, message) {
			return false
		}
		found = true
	}
	return found
}

// ThawsFileSystem reports whether a post command undoes a freeze of the kernel's, which
// outlives the container.
func ThawsFileSystem(command []string) bool {
	return slices.ContainsFunc(command, func(word string) bool {
		return strings.Contains(word, "fsfreeze") || strings.Contains(word, "xfs_freeze")
	})
}

// OnlyFileSystem returns the mount path of a command that freezes or thaws one file system
// and does nothing else; ok is false for any other.
func OnlyFileSystem(command []string) (mountPath string, ok bool) {
	if len(command) == 0 {
		return "", false
	}
	switch path.Base(command[0]) {
	case "busybox", "exec":
		return OnlyFileSystem(command[1:])
	case "sh", "bash", "dash", "ash":
		script := command[len(command)-1]
		if len(command) < 3 || command[len(command)-2] != "-c" || strings.ContainsAny(script, "\"'\\`$&|;<>()*?[#~\r") || strings.Contains(strings.TrimSpace(script), "\n") {
			return "", false
		}
		return OnlyFileSystem(strings.Fields(script))
	case "fsfreeze", "xfs_freeze":
		if len(command) == 3 && slices.Contains([]string{"-f", "-u", "--freeze", "--unfreeze"}, command[1]) && path.IsAbs(command[2]) {
			return command[2], true
		}
	}
	return "", false
}

// namesPath reports whether a command contains mountPath, or a path below it.
func namesPath(command []string, mountPath string, below bool) bool {
	mountPath = path.Clean(mountPath)
	return slices.ContainsFunc(command, func(word string) bool {
		return slices.ContainsFunc(strings.FieldsFunc(word, func(r rune) bool {
			return strings.ContainsRune(" \t\r\n\"'`;&|()<>=", r)
		}), func(part string) bool {
			part = path.Clean(part)
			return part == mountPath || below && strings.HasPrefix(part, mountPath+"/")
		})
	})
}

// Unmasked shows the output of a command that was given no secret.
func Unmasked(output string, cut bool) string {
	return render.Masker{}.Tail(output, podexec.TailLimit, cut)
}
