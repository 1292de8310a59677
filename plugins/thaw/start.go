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
	// lookLimit bounds the look of a plugin that has just started.
	lookLimit = 10 * time.Second
	// farewell is how long a plugin that Velero ends at once waits for its look;
	// Velero kills it after two seconds.
	farewell = time.Second
	// tries is how long the release is tried: less than a backup waits for it.
	tries = 30 * time.Second
)

// AtStart looks for what is quiesced and held by nobody any more, in the
// background and with one request when there is nothing. Otherwise it starts a
// process that releases it and outlives this one, since Velero ends a plugin that
// it has only asked for its actions at once. cookie is the name of the variable by
// which Velero says who is calling.
//
// The function that it returns waits for the look, a second at the most. Trouble
// is told nowhere: there is no backup here that it could concern, and the next
// one looks again.
func AtStart(cookie string) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
		defer cancel()
		if due(ctx) {
			_ = release(cookie)
		}
	}()
	return func() {
		select {
		case <-done:
		case <-time.After(farewell):
		}
	}
}

func due(ctx context.Context) bool {
	clients, err := cluster.NewClients()
	if err != nil {
		return false
	}
	// An error is of some of them.
	abandoned, _ := journal.New(clients, clock.RealClock{}).Abandoned(ctx)
	return slices.ContainsFunc(abandoned, func(i journal.Entry) bool { return i.Due(time.Now()) })
}

// release starts `stillpoint thaw --abandoned` in a session of its own.
func release(cookie string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// No context: it is to outlive this process.
	command := exec.Command(program, "thaw", "--abandoned", "--timeout", tries.String())
	command.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, cookie+"=") })
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return err
	}
	go func() { _ = command.Wait() }() // while this process lasts, nobody else can
	return nil
}
