package quiesce

import (
	"path"
	"slices"
	"strings"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// state is the known state of the effect that a post command undoes. It alone decides
// whether a thaw is due or confirmed, and whether a freeze was broken. The scripts follow
// the same rules.
type state int

const (
	// notBegun: no pre command has started.
	notBegun state = iota
	// pending: a pre command has started and is not known to have ended. It can still
	// freeze: FIFREEZE waits for writers, and SIGKILL waits for FIFREEZE.
	pending
	// frozen: all pre commands have succeeded, and nothing has been undone.
	frozen
	// foreign: the kernel has refused the freeze because of another program's freeze.
	foreign
	// uncertain: all pre commands have ended, and some have failed.
	uncertain
	// thawed: undone, or known not to be frozen.
	thawed
)

// due reports whether the post command has to run.
func (s state) due() bool { return s == pending || s == frozen || s == uncertain }

// combine returns the state of a post command's effect from the states of its pre commands.
func combine(commands []state) state {
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

// ended returns the state after a pre command has ended. code is "0" for success.
func ended(command []string, code string, printed *podexec.Output) state {
	output, _ := printed.Tail()
	all := strings.Join(command, " ")
	refused := ThawsFileSystem(command) && hasKernelError(output, "Device or resource busy")
	switch {
	case refused && strings.Count(all, "fsfreeze")+strings.Count(all, "xfs_freeze") == 1: // refused this command's only freeze
		return foreign
	case refused || code != "0":
		return uncertain
	}
	return frozen
}

// Reply is the result of one try of a post command.
type Reply int

const (
	// failed: the command failed or did not answer.
	failed Reply = iota
	// Undone means that the command succeeded, and that its file system was frozen.
	Undone
	// ran: a command that thaws a file system among other things succeeded.
	ran
	// notFrozen: the kernel has returned EINVAL, as it also does while a freeze waits for
	// writers.
	notFrozen
)

// replyOf returns the result of a post command. code is "0" for success.
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

// after returns the state after a try of the post command. sure means that, regardless of
// the state, the pre commands had ended before the try. broken reports whether another
// program has thawed the file system.
func (s state) after(r Reply, sure bool) (next state, broken bool) {
	switch {
	case !s.due() || r == failed:
		return s, false
	case s == pending && !sure && r != Undone:
		return pending, false
	}
	return thawed, s == frozen && r == notFrozen
}

// hasKernelError reports whether fsfreeze or xfs_freeze has printed the kernel's error
// message and no other error.
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

// ThawsFileSystem reports whether a post command thaws a file system, whose freeze
// outlives the container.
func ThawsFileSystem(command []string) bool {
	return slices.ContainsFunc(command, func(word string) bool {
		return strings.Contains(word, "fsfreeze") || strings.Contains(word, "xfs_freeze")
	})
}

// OnlyFileSystem returns the mount path of a command that only freezes or thaws one file
// system; ok is false for other commands.
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

// Unmasked is a podexec.Show for commands without secrets.
func Unmasked(output string, cut bool) string {
	return render.Masker{}.Tail(output, podexec.TailLimit, cut)
}
