package bed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// callLimit is the time a call of kubectl or velero may take where the caller's
// context sets none: kubectl exec can hang for ever.
const callLimit = 2 * time.Minute

// Kubectl runs kubectl as the cluster's administrator and returns what it
// prints. It must be called from inside the cluster's network.
func (b *Bed) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return b.call(ctx, stdin, "kubectl", args...)
}

// Velero runs the velero client and returns what it prints. It must be called
// from inside the cluster's network.
func (b *Bed) Velero(ctx context.Context, args ...string) (string, error) {
	return b.call(ctx, nil, "velero", args...)
}

func (b *Bed) call(ctx context.Context, stdin io.Reader, program string, args ...string) (string, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callLimit)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, b.path("bin", program), args...)
	cmd.Env = b.Environ()
	cmd.Stdin = stdin
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = time.Second // its output may be held open by others
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
