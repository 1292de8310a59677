package thaw

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/journal"
)

const (
	// checkLimit limits the check of a plugin that has just started.
	checkLimit = 10 * time.Second
	// exitGrace is how long a plugin that Velero stops at once waits for its check.
	// Velero kills it after two seconds.
	exitGrace = time.Second
	// releaseLimit limits the retries of a release. It is shorter than the time that a
	// backup waits for it.
	releaseLimit = 30 * time.Second
)

// AtStart checks the journal for abandoned entries in the background, with one request
// if the journal is empty. For abandoned entries it starts a process that releases them
// and outlives this one, because Velero stops a plugin at once after listing its
// actions. cookie is the name of the variable of Velero's handshake, which that process
// must not inherit.
//
// The returned function waits for the check, a second at most. AtStart does not report
// errors, because there is no backup that they concern, and the next backup checks
// again.
func AtStart(cookie string) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), checkLimit)
		defer cancel()
		if due(ctx) {
			_ = release(cookie)
		}
	}()
	return func() {
		select {
		case <-done:
		case <-time.After(exitGrace):
		}
	}
}

func due(ctx context.Context) bool {
	clients, err := cluster.NewClients()
	if err != nil {
		return false
	}
	// An error concerns only some entries.
	abandoned, _ := journal.New(clients, clock.RealClock{}).Abandoned(ctx)
	return slices.ContainsFunc(abandoned, func(i journal.Entry) bool { return i.Due(time.Now()) })
}

// release starts `stillpoint thaw --abandoned` in a session of its own.
func release(cookie string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// Without a context, so that the command outlives this process.
	command := exec.Command(program, "thaw", "--abandoned", "--timeout", releaseLimit.String())
	command.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, cookie+"=") })
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return err
	}
	go func() { _ = command.Wait() }() // no other process can while this one lives
	return nil
}
