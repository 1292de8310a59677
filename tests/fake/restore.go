package fake

import (
	"context"
	"strings"

	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	riav1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v1"
	riav2 "github.com/vmware-tanzu/velero/pkg/plugin/velero/restoreitemaction/v2"
	vsv1 "github.com/vmware-tanzu/velero/pkg/plugin/velero/volumesnapshotter/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"

	"stillpoint.io/stillpoint/internal/location/csi/spec"
	"stillpoint.io/stillpoint/plugins/backup"
	"stillpoint.io/stillpoint/plugins/check"
	"stillpoint.io/stillpoint/plugins/command"
	deletion "stillpoint.io/stillpoint/plugins/delete"
	"stillpoint.io/stillpoint/plugins/restore"
	"stillpoint.io/stillpoint/plugins/sweep"
	"stillpoint.io/stillpoint/plugins/thaw"
)

// Restoring is one process of the plugin during one restore.
type Restoring struct {
	Log          *logrustest.Hook
	Snapshots    riav1.RestoreItemAction
	Claims       riav2.RestoreItemAction
	StatefulSets riav1.RestoreItemAction
	Volumes      riav1.RestoreItemAction
	Owners       riav2.RestoreItemAction
	// WithoutCSI has Velero pass over its own CSI actions, as a server without
	// EnableCSI does.
	WithoutCSI bool
	bed        *Bed
}

// Restoring starts a plugin process for a restore.
func (b *Bed) Restoring() *Restoring {
	b.T.Helper()
	logger, hook := Logs()
	r := &Restoring{Log: hook, bed: b}
	b.Connect(func() {
		shared := &restore.Shared{}
		r.Snapshots = made[riav1.RestoreItemAction](b, shared.Snapshots, logger)
		r.Claims = made[riav2.RestoreItemAction](b, shared.Claims, logger)
		r.StatefulSets = made[riav1.RestoreItemAction](b, shared.StatefulSets, logger)
		r.Volumes = made[riav1.RestoreItemAction](b, shared.Volumes, logger)
		r.Owners = made[riav2.RestoreItemAction](b, shared.Owners, logger)
	})
	return r
}

// Restore is a Restore of a backup that is in progress.
func (b *Bed) Restore(backup *velerov1.Backup) *velerov1.Restore {
	b.T.Helper()
	restored := &velerov1.Restore{
		TypeMeta:   metav1.TypeMeta{APIVersion: velerov1.SchemeGroupVersion.String(), Kind: "Restore"},
		ObjectMeta: metav1.ObjectMeta{Namespace: VeleroNamespace, Name: backup.Name + "-1", UID: uuid.NewUUID()},
		Spec:       velerov1.RestoreSpec{BackupName: backup.Name},
		Status:     velerov1.RestoreStatus{Phase: velerov1.RestorePhaseInProgress},
	}
	b.API.Put(b.T, restored)
	return restored
}

// Input is what Velero passes to a restore action: an item as it is to be
// restored, and as the backup has it.
func (b *Bed) Input(item, backedUp runtime.Object, restore *velerov1.Restore) *velero.RestoreItemActionExecuteInput {
	b.T.Helper()
	now, err := toUnstructured(item)
	if err != nil {
		b.T.Fatal(err)
	}
	before, err := toUnstructured(backedUp)
	if err != nil {
		b.T.Fatal(err)
	}
	return &velero.RestoreItemActionExecuteInput{Item: now, ItemFromBackup: before, Restore: restore}
}

// Deleting is the plugin's action of a process that deletes a backup.
func (b *Bed) Deleting() (velero.DeleteItemAction, *logrustest.Hook) {
	b.T.Helper()
	logger, hook := Logs()
	var action velero.DeleteItemAction
	b.Connect(func() { action = made[velero.DeleteItemAction](b, deletion.New, logger) })
	return action, hook
}

// Locating is one process of the plugin during a backup of a Velero without
// EnableCSI, with the VolumeSnapshotter of a location.
type Locating struct {
	*Velero
	Snapshotter vsv1.VolumeSnapshotter
}

// Locating starts such a process; config is the location's.
func (b *Bed) Locating(config map[string]string) *Locating {
	b.T.Helper()
	logger, hook := Logs()
	v := &Velero{Log: hook, Logger: logger, bed: b}
	l := &Locating{Velero: v}
	b.Connect(func() {
		shared := backup.NewShared(func() bool { return false })
		v.actions(shared, logger)
		l.Snapshotter = made[vsv1.VolumeSnapshotter](b, shared.Locations, logger)
		if err := l.Snapshotter.Init(config); err != nil {
			b.T.Fatal(err)
		}
	})
	return l
}

// Provider is the VolumeSnapshotter's name in a VolumeSnapshotLocation.
const Provider = spec.Provider

// Command runs one of the plugin's commands (check, sweep, thaw) with arguments,
// and returns its exit code and what it prints to standard output and to standard
// error.
func (b *Bed) Command(name string, args ...string) (code int, stdout, stderr string) {
	b.T.Helper()
	var out, failed strings.Builder
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.Connect(func() {
		root := command.Tree(&cobra.Command{Use: "stillpoint"}, check.New(), sweep.New(), thaw.New())
		code = command.Execute(ctx, root, append([]string{name}, args...), &out, &failed)
	})
	return code, out.String(), failed.String()
}
