// Package process keeps the long-running programs of the test bed: it starts
// each in a session of its own, records what it started, and later stops that
// very process and no other. A pid alone proves nothing after a crash or a
// reboot, so a record also holds the process's start time and the boot it
// belongs to, and every process carries a mark in its environment by which
// those are found that were started but never recorded.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is set in the environment of each process started here, and is
// inherited by what it starts in turn (containerd's shims, for one).
const markVariable = "STILLPOINT_TESTBED_COMPONENT"

// maxLog is the size from which a log is begun anew at the next start, bytes.
const maxLog = 64 << 20

// Table is a set of processes that belong together.
type Table struct {
	// Records is the directory of the records, one file for each process.
	Records string
	// Logs is the directory in which NAME.log takes each one's output.
	Logs string
	// Mark tells this table's processes from those of another on the machine.
	Mark string
}

// Spec says how a process is started.
type Spec struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	// Env is added to the environment of the starting process.
	Env []string `json:"env,omitempty"`
	// Config identifies what the process reads when it starts. It is replaced
	// when this changes.
	Config string `json:"config,omitempty"`
}

// record is one started process.
type record struct {
	Spec
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
	Boot  string `json:"boot"`
	// Binary is the program behind Args[0] with links resolved, Built when it
	// was written: a rebuilt program is not the one that runs.
	Binary string    `json:"binary"`
	Built  time.Time `json:"built"`
}

// Start starts a process and records it. When it runs already nothing is
// done, unless it was started otherwise or from another build: then it is
// replaced. It reports whether it started something.
func (t Table) Start(ctx context.Context, spec Spec) (bool, error) {
	binary, built, err := program(spec.Args[0])
	if err != nil {
		return false, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	if r, err := t.read(spec.Name); err == nil && r.alive() {
		if reflect.DeepEqual(r.Spec, spec) && r.Binary == binary && r.Built.Equal(built) {
			return false, nil
		}
		if err := t.Stop(ctx, spec.Name, 5*time.Second); err != nil {
			return false, err
		}
	}
	if err := t.killUnrecorded(ctx, spec); err != nil {
		return false, err
	}

	log, err := openLog(t.LogFile(spec.Name))
	if err != nil {
		return false, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	defer log.Close()
	// What we were given open, such as the lock of flock(1), is not for what
	// outlives us.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return false, fmt.Errorf("start %s: keep our open files from it: %w", spec.Name, err)
	}
	cmd := exec.Command(spec.Args[0], spec.Args[1:]...) //nolint:noctx // it is to outlive us
	cmd.Env = append(append(os.Environ(), spec.Env...), markVariable+"="+t.mark(spec.Name))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		return false, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it should it end before we do
	r := record{Spec: spec, PID: cmd.Process.Pid, Start: st.start, Boot: bootID(), Binary: binary, Built: built}
	if err := t.write(r); err != nil {
		return true, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return true, nil
}

// Kill ends a process with SIGKILL and waits until it is gone. The record
// stays.
func (t Table) Kill(ctx context.Context, name string) error {
	r, err := t.read(name)
	if err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	return r.end(ctx, syscall.SIGKILL, 10*time.Second)
}

// Stop ends a process with SIGTERM, and with SIGKILL when that does not do
// within grace, and forgets it. A process that is not there is no error.
func (t Table) Stop(ctx context.Context, name string, grace time.Duration) error {
	r, err := t.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	if err := r.end(ctx, syscall.SIGTERM, grace); err != nil {
		if err := r.end(ctx, syscall.SIGKILL, 10*time.Second); err != nil {
			return err
		}
	}
	if err := os.Remove(t.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stop %s: forget it: %w", name, err)
	}
	return nil
}

// PID is the process id of a running process, or 0 when it does not run.
func (t Table) PID(name string) int {
	r, err := t.read(name)
	if err != nil || !r.alive() {
		return 0
	}
	return r.PID
}

// Started is when a running process was started, to the clock tick; zero when
// it does not run.
func (t Table) Started(name string) time.Time {
	r, err := t.read(name)
	if err != nil || !r.alive() {
		return time.Time{}
	}
	info, err := os.Stat(t.file(name)) // written within milliseconds of the start
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// Names lists the recorded processes, running or not.
func (t Table) Names() []string {
	files, _ := filepath.Glob(filepath.Join(t.Records, "*.json"))
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	return names
}

// LogFile is where a process's output goes.
func (t Table) LogFile(name string) string { return filepath.Join(t.Logs, name+".log") }

func (t Table) file(name string) string { return filepath.Join(t.Records, name+".json") }

func (t Table) mark(name string) string { return t.Mark + "#" + name }

func (t Table) read(name string) (record, error) {
	var r record
	b, err := os.ReadFile(t.file(name))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", t.file(name), err)
	}
	return r, nil
}

// write replaces the record as a whole: a reader never sees half of one.
func (t Table) write(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	next := t.file(r.Name) + ".new"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, t.file(r.Name))
}

func (r record) alive() bool {
	if r.Boot != bootID() {
		return false
	}
	st, err := readStat(r.PID)
	return err == nil && st.start == r.Start && st.running()
}

// end sends the signal and waits for the process to go.
func (r record) end(ctx context.Context, signal syscall.Signal, limit time.Duration) error {
	if !r.alive() {
		return nil
	}
	if err := syscall.Kill(r.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s (pid %d): %w", signal, r.Name, r.PID, err)
	}
	deadline := time.Now().Add(limit)
	for r.alive() {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s (pid %d) still runs %s after %s", r.Name, r.PID, limit, signal)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s (pid %d) to end: %w", r.Name, r.PID, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func program(path string) (string, time.Time, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", time.Time{}, err
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return "", time.Time{}, err
	}
	return resolved, info.ModTime(), nil
}

func openLog(path string) (*os.File, error) {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}
