package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

// What the example, and this walk-through with it, is called.
const (
	namespace  = "date"
	deployment = "date"
	claim      = "data"
	schedule   = "date"
	hooks      = "fsfreeze-hooks-deployment" // the blueprint, and the ConfigMap that holds it
	policy     = "stillpoint-volume-policy"  // of deploy/volume-policy.yaml
	file       = "/mnt/date"
	// probe is where a writer that we start beside the application writes.
	probe = "/mnt/probe"
	// yearly is a schedule that nobody waits for: it fires on 29 February.
	yearly = "0 0 29 2 *"
)

const (
	// several is how many lines the file must have before it is backed up.
	several = 4
	// goingOn is how many lines the restored application must add.
	goingOn = 2
	// vanishLimit is how long a snapshot may outlast its backup.
	vanishLimit = 10 * time.Second
)

var app = stage.Container{Namespace: namespace, Deployment: deployment, Name: "date"}

// result is what build/demo.json holds.
type result struct {
	BackupPhase  string `json:"backupPhase"`
	RestorePhase string `json:"restorePhase"`
	// FrozenMillis is what Stillpoint reports, from the begin of the freeze to
	// the end of the thaw.
	FrozenMillis int64 `json:"frozenMillis"`
	// StallMillis is what the application saw: the longest that a write took.
	StallMillis int64 `json:"stallMillis"`
	// SnapshotsLeft counts VolumeSnapshots, contents, and snapshots of the storage.
	SnapshotsLeft int `json:"snapshotsLeft"`
	// LinesBefore is how many lines the file had just before the backup began,
	// LinesRestored how many of the deleted file came back.
	LinesBefore   int `json:"linesBefore"`
	LinesRestored int `json:"linesRestored"`
	TornLines     int `json:"tornLines"`
}

type demo struct {
	*stage.Stage
	example string

	result result
	backup string
}

// walk goes all the way once. It stops where the rest would make no sense, and
// otherwise collects what was not as promised.
func (d *demo) walk(ctx context.Context, to string) error {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	had, err := d.Snapshots(ctx)
	if err != nil {
		return err
	}
	if err := d.install(ctx); err != nil {
		return err
	}
	before, err := d.runBackup(ctx)
	if err != nil {
		return err
	}
	broken := []error{d.checkSnapshots(ctx)}
	lost, at, err := d.disaster(ctx)
	if err != nil {
		return errors.Join(append(broken, err)...)
	}
	if err := d.restore(ctx); err != nil {
		return errors.Join(append(broken, err)...)
	}
	broken = append(broken, d.compare(ctx, before, lost, at), d.checkStorage(ctx, had), stage.WriteResult(to, d.result))
	return errors.Join(broken...)
}

// install applies the example and waits until the application has written.
func (d *demo) install(ctx context.Context) error {
	d.Say("An application with one volume. Its blueprint is Kanister's, unchanged, in a ConfigMap.")
	d.Say("A volume policy hands the volumes to Stillpoint.")
	for _, args := range [][]string{
		{"apply", "--filename", filepath.Join("deploy", "volume-policy.yaml")},
		{"create", "configmap", hooks, "--namespace", cluster.VeleroNamespace, "--from-file", filepath.Join(d.example, "blueprint.yaml")},
		{"label", "configmap", hooks, "--namespace", cluster.VeleroNamespace, api.LabelBlueprint + "=true"},
		{"apply", "--filename", filepath.Join(d.example, "app.yaml")},
	} {
		if err := d.Run(ctx, "kubectl", args...); err != nil {
			return err
		}
	}
	if err := d.AwaitRollout(ctx, namespace, deployment); err != nil {
		return err
	}
	return stage.Until(ctx, fmt.Sprintf("%s has %d lines", file, several), func(ctx context.Context) (bool, error) {
		text, err := d.read(ctx)
		return strings.Count(text, "\n") >= several, err
	})
}

func (d *demo) read(ctx context.Context) (string, error) {
	// The file is not there before the first line is.
	return d.Exec(ctx, app, "sh", "-c", "cat "+file+" || true")
}

// runBackup triggers the schedule once. It returns the lines of just before.
func (d *demo) runBackup(ctx context.Context) (before []string, err error) {
	d.Say("A schedule that exports, triggered once by hand.")
	if err := d.Run(ctx, "velero", "schedule", "create", schedule, "--schedule", yearly,
		"--include-namespaces", namespace, "--resource-policies-configmap", policy, "--snapshot-move-data"); err != nil {
		return nil, err
	}
	// The stall is measured by a writer in the application's own container,
	// since the application itself writes only now and then.
	if _, err := d.Exec(ctx, app, "sh", "-c",
		"mkdir -p "+probe+"; "+strings.Join(stage.WriterCommand(probe), " ")+" </dev/null >/dev/null 2>&1 &"); err != nil {
		return nil, err
	}
	text, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	before, torn := lines(text)
	if len(torn) > 0 {
		return nil, fmt.Errorf("%s is torn before anything has happened to it: %q", file, torn)
	}
	d.result.LinesBefore = len(before)
	d.Say("%s has %d lines, the last is %q", file, len(before), before[len(before)-1])

	if err := d.Run(ctx, "velero", "backup", "create", "--from-schedule", schedule); err != nil {
		return nil, err
	}
	backups, err := d.Backups(ctx, ofSchedule)
	if err != nil {
		return nil, err
	}
	if len(backups) != 1 {
		return nil, fmt.Errorf("schedule %s has %d backups, not one", schedule, len(backups))
	}
	d.backup = backups[0].Name
	backup, err := d.AwaitBackup(ctx, d.backup, d.tell("backup "+d.backup))
	if err != nil {
		return nil, err
	}
	d.result.BackupPhase = string(backup.Status.Phase)
	if err := d.Promised(ctx, backup); err != nil {
		return nil, err
	}
	return before, d.measure(ctx)
}

// tell makes entries of phases.
func (d *demo) tell(of string) func(string) {
	return func(phase string) {
		if phase != "" {
			d.Say("%s: %s", of, phase)
		}
	}
}

// measure finds out how long the application was frozen.
func (d *demo) measure(ctx context.Context) error {
	log, err := d.BackupLog(ctx, d.backup)
	if err != nil {
		return err
	}
	frozen, err := log.Frozen()
	if err != nil {
		return err
	}
	stall, err := d.LongestStall(ctx, app)
	if err != nil {
		return err
	}
	d.result.FrozenMillis, d.result.StallMillis = frozen.Milliseconds(), stall.Milliseconds()
	d.Say("The application was frozen for %d ms. The longest that it had to wait for a write was %d ms.",
		d.result.FrozenMillis, d.result.StallMillis)
	return nil
}

// checkSnapshots sees to it that no snapshot is left now that all is exported.
func (d *demo) checkSnapshots(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, vanishLimit)
	defer cancel()
	var left []string
	err := stage.Until(wait, "no snapshot is left", func(ctx context.Context) (bool, error) {
		var err error
		left, err = d.SnapshotsLeft(ctx, namespace, claim, d.backup)
		return len(left) == 0, err
	})
	d.result.SnapshotsLeft = len(left)
	if len(left) > 0 {
		return fmt.Errorf("the data is exported, and still there are: %s", strings.Join(left, ", "))
	}
	if err != nil {
		return err
	}
	d.Say("No snapshot of it is left, in the cluster or on the storage: the export is all there is.")
	return nil
}

// checkStorage asks the driver, and not the API, what there is at the end.
func (d *demo) checkStorage(ctx context.Context, had []cluster.StoredSnapshot) error {
	has, err := d.Snapshots(ctx)
	if err != nil {
		return err
	}
	var left []string
	for _, s := range has {
		if !slices.ContainsFunc(had, func(before cluster.StoredSnapshot) bool { return before.ID == s.ID }) {
			left = append(left, s.ID)
		}
	}
	d.result.SnapshotsLeft += len(left)
	if len(left) > 0 {
		return fmt.Errorf("the storage holds snapshots that were not there before: %s", strings.Join(left, ", "))
	}
	d.Say("The CSI driver, asked at the end, holds no snapshot that was not there before: %d then, %d now.", len(had), len(has))
	return nil
}

// disaster deletes the namespace. It returns the lines that the file had, and when.
func (d *demo) disaster(ctx context.Context) (lost []string, at time.Time, err error) {
	d.Say("The disaster.")
	text, err := d.read(ctx)
	if err != nil {
		return nil, at, err
	}
	lost, _ = lines(text)
	at = time.Now()
	d.Command("kubectl", "delete", "namespace", namespace)
	return lost, at, d.DeleteNamespace(ctx, namespace)
}

// restore brings the application back.
func (d *demo) restore(ctx context.Context) error {
	if err := d.Run(ctx, "velero", "restore", "create", d.backup, "--from-backup", d.backup); err != nil {
		return err
	}
	restore, err := d.AwaitRestore(ctx, d.backup, d.tell("restore "+d.backup))
	if err != nil {
		return err
	}
	d.result.RestorePhase = string(restore.Status.Phase)
	if restore.Status.Phase != velerov1.RestorePhaseCompleted {
		return fmt.Errorf("restore %s is %s, not Completed", d.backup, restore.Status.Phase)
	}
	return d.AwaitRollout(ctx, namespace, deployment)
}

// compare checks what came back, once the application has written some more.
func (d *demo) compare(ctx context.Context, before, lost []string, at time.Time) error {
	var found comparison
	err := stage.Until(ctx, "the restored application writes", func(ctx context.Context) (bool, error) {
		text, err := d.read(ctx)
		found = compare(before, lost, text, at)
		return len(found.after) >= goingOn, err
	})
	if err != nil {
		return err
	}
	d.result.LinesRestored, d.result.TornLines = found.restored, len(found.torn)
	if found.restored > 0 {
		d.Say("%d lines came back, the last is %q; it goes on with %q", found.restored, lost[found.restored-1], found.after[0])
	}
	return found.broken()
}

var ofSchedule = client.MatchingLabels{velerov1.ScheduleNameLabel: schedule}

// clear takes everything away that a run makes, however far it came. The
// schedule goes first and the backups before the namespace, so that nothing
// freezes what is just being deleted.
func (d *demo) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	if _, err := d.Kubectl(ctx, nil, "delete", "schedule", schedule, "--namespace", cluster.VeleroNamespace, "--ignore-not-found"); err != nil {
		return err
	}
	if err := d.DeleteBackups(ctx, ofSchedule); err != nil {
		return err
	}
	if err := d.DeleteNamespace(ctx, namespace); err != nil {
		return err
	}
	_, err := d.Kubectl(ctx, nil, "delete", "configmap", hooks, policy, "--namespace", cluster.VeleroNamespace, "--ignore-not-found")
	return err
}
