package main

import (
	"context"
	"fmt"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// backupLimit is for one backup; others may use the same Velero.
	backupLimit = 5 * time.Minute
	// clearLimit is for deleting all backups and namespaces.
	clearLimit = 5 * time.Minute
)

// ours marks the backups of the bench.
var ours = client.MatchingLabels{"stillpoint.io/bench": "true"}

// bench measures stalls under both ways of quiescing.
type bench struct {
	*stage.Stage
	apps []*app
	runs int
}

// run installs the applications and measures them, the ways taking turns, so
// that what else the machine does falls on both alike.
func (b *bench) run(ctx context.Context) ([]series, error) {
	result := make([]series, len(b.apps))
	for i, a := range b.apps {
		if err := a.install(ctx); err != nil {
			return nil, err
		}
		result[i].volumes = a.volumes
	}
	for run := range b.runs {
		for i, a := range b.apps {
			for _, w := range ways {
				name := fmt.Sprintf("bench-%d-%s-%d", a.volumes, w.name(), run+1)
				stall, err := b.measure(ctx, a, w, name)
				if err != nil {
					return nil, fmt.Errorf("%s with %d volumes, run %d: %w", w, a.volumes, run+1, err)
				}
				result[i].stalls[w] = append(result[i].stalls[w], stall)
				b.Say("run %d of %d, %d volumes, %s: stalled for %d ms", run+1, b.runs, a.volumes, w, stall.Milliseconds())
			}
		}
	}
	return result, nil
}

// measure makes one backup and returns for how long the writer was kept waiting
// at the worst.
func (b *bench) measure(ctx context.Context, a *app, w way, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	if err := a.ask(ctx, w); err != nil {
		return 0, err
	}
	if err := b.ForgetStalls(ctx, a.container()); err != nil {
		return 0, err
	}
	args := []string{"backup", "create", name, "--include-namespaces", a.namespace()}
	for key, value := range ours {
		args = append(args, "--labels", key+"="+value)
	}
	if _, err := b.Velero(ctx, args...); err != nil {
		return 0, err
	}
	backup, err := b.AwaitBackup(ctx, name, nil)
	if err != nil {
		return 0, err
	}
	if err := b.Promised(ctx, backup); err != nil {
		return 0, err
	}
	stall, err := b.LongestStall(ctx, a.container())
	if err != nil {
		return 0, err
	}
	return stall, b.quiesced(ctx, backup, a, w)
}

// quiesced makes sure that the application was quiesced this way, and that
// each of its volumes was snapshotted.
func (b *bench) quiesced(ctx context.Context, backup *velerov1.Backup, a *app, w way) error {
	if n := backup.Status.CSIVolumeSnapshotsCompleted; n != a.volumes {
		return fmt.Errorf("backup %s has snapshots of %d volumes", backup.Name, n)
	}
	hooks := velerov1.HookStatus{}
	if backup.Status.HookStatus != nil {
		hooks = *backup.Status.HookStatus
	}
	want := velerov1.HookStatus{}
	if w == veleroHooks {
		want.HooksAttempted = 2
	} else {
		log, err := b.BackupLog(ctx, backup.Name)
		if err != nil {
			return err
		}
		if _, err := log.Frozen(); err != nil {
			return err
		}
	}
	if hooks != want {
		return fmt.Errorf("backup %s: %d of Velero's hooks were run and %d failed, not %d and %d", backup.Name,
			hooks.HooksAttempted, hooks.HooksFailed, want.HooksAttempted, want.HooksFailed)
	}
	return nil
}

// clear deletes what this run or an earlier one has left. Namespaces go last:
// a backup that is still at work may freeze.
func (b *bench) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	if err := b.DeleteBackups(ctx, ours); err != nil {
		return err
	}
	for _, a := range b.apps {
		if err := b.DeleteNamespace(ctx, a.namespace()); err != nil {
			return err
		}
	}
	return nil
}

// thaw thaws what a failure may have left frozen; it must not wait for backups.
func (b *bench) thaw(ctx context.Context) {
	for _, a := range b.apps {
		for _, claim := range a.claims() {
			if frozen, err := b.Thaw(ctx, a.namespace(), claim); err == nil && frozen {
				b.Say("thawed %s/%s from the host", a.namespace(), claim)
			}
		}
	}
}
