package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/cluster/bed"
	"stillpoint.io/stillpoint/tests/stage"
)

const (
	// backupLimit is for one backup of an application; others may use the same
	// Velero. Velero takes 80 s for 16 volumes.
	backupLimit = 6 * time.Minute
	// large is the number of volumes from which an application is measured only
	// largeRuns times.
	large, largeRuns = 16, 3
)

// series are the stalls of one application, for each way in the order of runs.
type series struct {
	volumes int
	stalls  [len(names)][]time.Duration // by way
}

// measureStalls installs the applications and measures them with each of the
// request limits.
func (b *bench) measureStalls(ctx context.Context, found *results) error {
	for _, a := range b.apps {
		if err := a.install(ctx); err != nil {
			return err
		}
	}
	for _, limits := range limitNames {
		if !slices.Contains(b.limits, limits) {
			continue
		}
		into := &found.stalls
		if limits == string(cluster.DefaultLimits) {
			into = &found.stallsDefault
		}
		b.Say("request limits of the snapshot controller and the CSI sidecar: %s", limits)
		b.limited = limits
		err := b.SetLimits(ctx, bed.Limits(limits))
		if err == nil {
			err = b.warmUp(ctx)
		}
		if err == nil {
			err = b.measureWays(ctx, into)
		}
		if err = errors.Join(err, b.SetLimits(context.WithoutCancel(ctx), cluster.RaisedLimits)); err != nil {
			return fmt.Errorf("with the request limits %s: %w", limits, err)
		}
	}
	return nil
}

// warmUp waits until components that have just been started take snapshots.
func (b *bench) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	_, err := b.cutAll(ctx, b.apps[0].namespace(), b.apps[0].claims()[:1])
	return err
}

// refill is how long it takes, with the default limits, until a component that is
// idle may send a whole burst again.
const refill = 3 * time.Second

// rest waits until the components are idle, so that each run finds them alike.
func (b *bench) rest(ctx context.Context, a *app) error {
	err := stage.Until(ctx, "the snapshots of the last run are gone", func(ctx context.Context) (bool, error) {
		left := &snapshotv1.VolumeSnapshotList{}
		err := b.Objects().List(ctx, left, client.InNamespace(a.namespace()))
		return len(left.Items) == 0, err
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(refill):
		return nil
	}
}

// measureWays measures the applications, the ways taking turns, so that what else the machine does falls on all alike. Only the early
// poll and the location have their runs in blocks: each takes two restarts of
// Velero.
func (b *bench) measureWays(ctx context.Context, into *[]series) error {
	found := make([]series, len(b.apps))
	*into = found
	for i, a := range b.apps {
		found[i].volumes = a.volumes
	}
	inTurns := slices.DeleteFunc(slices.Clone(b.ways), func(w way) bool { return w == early || w == location })
	if err := b.turns(ctx, inTurns, found); err != nil {
		return err
	}
	if err := b.throughLocation(ctx, found); err != nil {
		return err
	}
	if !slices.Contains(b.ways, early) {
		return nil
	}
	b.Say("restarting Velero with %s=true", earlyVariable)
	err := b.SetVeleroVariable(ctx, earlyVariable, "true")
	if err == nil {
		err = b.turns(ctx, []way{early}, found)
	}
	if err != nil {
		b.thaw(context.WithoutCancel(ctx)) // not to wait for the restart
	}
	b.Say("restarting Velero without it")
	return errors.Join(err, b.SetVeleroVariable(context.WithoutCancel(ctx), earlyVariable, ""))
}

// throughLocation measures the VolumeSnapshotter, which Velero calls for CSI
// volumes only without the feature EnableCSI.
func (b *bench) throughLocation(ctx context.Context, into []series) error {
	if !slices.Contains(b.ways, location) {
		return nil
	}
	b.Say("restarting Velero without EnableCSI")
	err := b.setFeatures(ctx, "")
	if err == nil {
		err = b.Objects().Create(ctx, snapshotLocation())
	}
	if err == nil {
		err = b.turns(ctx, []way{location}, into)
	}
	if err != nil {
		b.thaw(context.WithoutCancel(ctx)) // not to wait for the restart
	}
	// The location is needed to delete the backups; clear does both.
	b.Say("restarting Velero with it")
	return errors.Join(err, b.setFeatures(context.WithoutCancel(ctx), csiFeature))
}

// snapshotLocation is where the backups of the way location go.
func snapshotLocation() *velerov1.VolumeSnapshotLocation {
	return &velerov1.VolumeSnapshotLocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: "bench", Labels: ours},
		Spec:       velerov1.VolumeSnapshotLocationSpec{Provider: spec.Provider},
	}
}

func (b *bench) turns(ctx context.Context, ways []way, into []series) error {
	for run := range b.runs {
		for i, a := range b.apps {
			if run >= runsOf(a.volumes, b.runs) {
				continue
			}
			for _, w := range ways {
				stall, err := b.measureStall(ctx, a, w, fmt.Sprintf("bench-%s-%d-%s-%d", b.limited, a.volumes, w, run+1))
				if err != nil {
					return fmt.Errorf("%s with %d volumes, run %d: %w", w, a.volumes, run+1, err)
				}
				into[i].stalls[w] = append(into[i].stalls[w], stall)
				b.Say("run %d of %d, %d volumes, %s: %d ms", run+1, runsOf(a.volumes, b.runs), a.volumes, w, stall.Milliseconds())
			}
		}
	}
	return nil
}

// runsOf is how often an application is measured.
func runsOf(volumes, runs int) int {
	if volumes >= large {
		return min(runs, largeRuns)
	}
	return runs
}

// measureStall makes one backup and returns for how long the writer was kept
// waiting at the worst. The floor is no stall: see cutAll.
func (b *bench) measureStall(ctx context.Context, a *app, w way, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, backupLimit)
	defer cancel()
	if err := b.rest(ctx, a); err != nil {
		return 0, err
	}
	if w == floor {
		return b.cutAll(ctx, a.namespace(), a.claims())
	}
	if err := a.ask(ctx, w); err != nil {
		return 0, err
	}
	if err := b.ForgetStalls(ctx, a.container()); err != nil {
		return 0, err
	}
	if err := b.createBackup(ctx, name, a.namespace(), w == group); err != nil {
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
	if err := snapshotted(backup, a.volumes); err != nil {
		return err
	}
	hooksRun := velerov1.HookStatus{}
	if backup.Status.HookStatus != nil {
		hooksRun = *backup.Status.HookStatus
	}
	want := velerov1.HookStatus{}
	if w == hooks || w == early {
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
	if hooksRun != want {
		return fmt.Errorf("backup %s: %d of Velero's hooks were run and %d failed, not %d and %d", backup.Name,
			hooksRun.HooksAttempted, hooksRun.HooksFailed, want.HooksAttempted, want.HooksFailed)
	}
	return nil
}

// snapshotted is an error unless the backup has a snapshot of each volume.
func snapshotted(backup *velerov1.Backup, volumes int) error {
	n := backup.Status.CSIVolumeSnapshotsCompleted + backup.Status.VolumeSnapshotsCompleted
	if n == volumes {
		return nil
	}
	who := "Velero did not take them all"
	if backup.Spec.ResourcePolicy != nil {
		who = "its volume policy leaves them to the plugin, which did not take them all"
	}
	return fmt.Errorf("backup %s is %s and has snapshots of %d of %d volumes: %s", backup.Name, backup.Status.Phase, n, volumes, who)
}
