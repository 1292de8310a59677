package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Limits names how many requests the snapshot controller and the CSI sidecar
// send to the API server.
type Limits string

const (
	// DefaultLimits are the components' own: 5 requests per second, bursts of 10.
	// Most clusters run with them.
	DefaultLimits Limits = "default"
	// RaisedLimits let the components send what they have. The cluster of the
	// tests runs with them, so that tests do not wait for the limiter.
	RaisedLimits Limits = "raised"
)

// unthrottled are the arguments of RaisedLimits.
var unthrottled = []string{"--kube-api-qps=200", "--kube-api-burst=400"}

// limited are the components whose limits can be chosen.
var limited = []string{SnapshotController, CSISnapshotter}

func (l Limits) flags() []string {
	if l == DefaultLimits {
		return nil
	}
	return unthrottled
}

// limitsFile records the limits of the running components, so that a component
// which a test kills is started again with the same ones.
func (b *Bed) limitsFile() string { return b.run("request-limits") }

// limits returns the recorded limits.
func (b *Bed) limits() Limits {
	if content, err := os.ReadFile(b.limitsFile()); err == nil {
		return Limits(content)
	}
	return RaisedLimits
}

// RecordLimits sets the limits with which the components are started next.
func (b *Bed) RecordLimits(limits Limits) error {
	if limits != DefaultLimits && limits != RaisedLimits {
		return fmt.Errorf("request limits %q: must be %s or %s", limits, DefaultLimits, RaisedLimits)
	}
	if limits == RaisedLimits {
		if err := os.Remove(b.limitsFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("record the request limits: %w", err)
		}
		return nil
	}
	if err := os.WriteFile(b.limitsFile(), []byte(limits), 0o600); err != nil {
		return fmt.Errorf("record the request limits: %w", err)
	}
	return nil
}

// SetLimits starts the snapshot controller and the CSI sidecar again with other
// limits, and updates their Deployments.
func (b *Bed) SetLimits(ctx context.Context, limits Limits) error {
	if err := b.RecordLimits(limits); err != nil {
		return err
	}
	for _, name := range limited {
		if _, err := b.start(ctx, name); err != nil {
			return err
		}
	}
	return b.mirror(ctx)
}

// mirrored is a Deployment that shows how a component of the machine was started.
type mirrored struct {
	Name       string
	Containers []mirroredContainer
}

type mirroredContainer struct {
	Name string
	Args []string
}

// mirrored returns the Deployments of the snapshot controller, and of the driver
// with its sidecar.
func (b *Bed) mirrored() []mirrored {
	container := func(name string) mirroredContainer { return mirroredContainer{name, b.flags(name)} }
	return []mirrored{
		{"snapshot-controller", []mirroredContainer{container(SnapshotController)}},
		{"loopcsi-controller", []mirroredContainer{container(CSIDriver), container(CSISnapshotter)}},
	}
}

// mirror applies the Deployments. Nothing runs in them: the components are
// processes of the machine, and the Deployments show their arguments as those of
// a usual cluster do.
func (b *Bed) mirror(ctx context.Context) error {
	manifest, err := b.config("mirror.yaml")
	if err != nil {
		return err
	}
	_, err = b.Kubectl(ctx, strings.NewReader(string(manifest)), "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}
