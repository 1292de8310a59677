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
	// lookLimit bounds the check of a plugin that has just started.
	lookLimit = 10 * time.Second
	// farewell is how long a plugin that Velero ends at once waits for its check;
	// Velero kills it after two seconds.
	farewell = time.Second
	// tries is how long the release is retried: less than a backup waits for it.
	tries = 30 * time.Second
)

// AtStart checks the journal for abandoned entries, in the background, and with one
// request if the journal is empty. For abandoned ones it starts a process that
// releases them and outlives this one: Velero ends a plugin at once that it has only
// asked for its actions. cookie is the name of the variable of Velero's handshake,
// which that process must not have.
//
// The returned function waits for the check, a second at most. Errors are not
// reported: there is no backup that they could concern, and the next one checks again.
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
	// An error concerns some of the entries only.
	abandoned, _ := journal.New(clients, clock.RealClock{}).Abandoned(ctx)
	return slices.ContainsFunc(abandoned, func(i journal.Entry) bool { return i.Due(time.Now()) })
}

// release starts `stillpoint thaw --abandoned` in a session of its own.
func release(cookie string) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// No context: the command must outlive this process.
	command := exec.Command(program, "thaw", "--abandoned", "--timeout", tries.String())
	command.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, cookie+"=") })
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return err
	}
	go func() { _ = command.Wait() }() // no other process can while this one lives
	return nil
}
