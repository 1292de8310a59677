package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stat is what /proc/PID/stat says about a process.
type stat struct {
	state byte
	start uint64 // clock ticks after boot
}

// running is false for a process that has ended and waits to be reaped.
func (s stat) running() bool { return s.state != 'Z' && s.state != 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The second field is the program's name in parentheses, which may itself
	// hold spaces and parentheses.
	_, rest, ok := cutLast(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return stat{}, fmt.Errorf("/proc/%d/stat has an unknown form", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return stat{state: f[0][0], start: start}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// pids lists every process of the machine.
func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func markOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for _, v := range bytes.Split(b, []byte{0}) {
		if mark, ok := strings.CutPrefix(string(v), markVariable+"="); ok {
			return mark
		}
	}
	return ""
}

// Args is the command line of a process, nil when it is gone.
func Args(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// All lists every process of the machine, those of containers included.
func All() []int { return pids() }

// killUnrecorded ends what an earlier start of the same process left behind
// when it was itself killed before it could write the record.
func (t Table) killUnrecorded(ctx context.Context, spec Spec) error {
	for _, pid := range pids() {
		args := Args(pid)
		if len(args) == 0 || args[0] != spec.Args[0] || markOf(pid) != t.mark(spec.Name) {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		r := record{Spec: spec, PID: pid, Start: st.start, Boot: bootID()}
		if err := r.end(ctx, syscall.SIGKILL, 10*time.Second); err != nil {
			return err
		}
	}
	return nil
}

// Marked are the processes that carry the table's mark: those it started, and
// what they started in turn.
func (t Table) Marked() []int {
	var marked []int
	for _, pid := range pids() {
		if pid == os.Getpid() || !strings.HasPrefix(markOf(pid), t.Mark+"#") {
			continue
		}
		if st, err := readStat(pid); err == nil && st.running() {
			marked = append(marked, pid)
		}
	}
	return marked
}

// KillAll ends, with SIGKILL, what list returns, until it returns nothing or
// ctx ends. Between two rounds it calls meanwhile, which may lift what holds a
// process in the kernel.
func KillAll(ctx context.Context, list func() []int, meanwhile func()) error {
	for {
		victims := list()
		if len(victims) == 0 {
			return nil
		}
		for _, pid := range victims {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		meanwhile()
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not end: %w", victims, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Self names this process so that Lives can tell later whether it still runs.
func Self() string {
	st, err := readStat(os.Getpid())
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d", bootID(), os.Getpid(), st.start)
}

// Lives reports whether a process that Self named still runs.
func Lives(name string) bool {
	f := strings.Split(name, "/")
	if len(f) != 3 || f[0] != bootID() {
		return false
	}
	pid, err := strconv.Atoi(f[1])
	if err != nil {
		return false
	}
	st, err := readStat(pid)
	return err == nil && st.running() && strconv.FormatUint(st.start, 10) == f[2]
}
