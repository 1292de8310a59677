package podexec

import (
	"errors"
	"strings"
)

// Quote returns command quoted for a POSIX shell.
func Quote(command []string) string {
	words := make([]string, len(command))
	for i, word := range command {
		words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// NoShell reports whether an error of Exec means that the container has no sh: the
// runtime (runc, crun) did not find the executable.
func NoShell(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, `"sh": executable file not found`) || strings.Contains(text, "executable file `sh` not found")
}

// ExitCode returns "0" or, for any other exit code, "1" from the error of Exec. known is
// false if the command may still run.
func ExitCode(err error) (code string, known bool) {
	var exit interface {
		error
		Exited() bool
	}
	switch {
	case err == nil:
		return "0", true
	case errors.As(err, &exit) && exit.Exited():
		return "1", true
	}
	return "", false
}
