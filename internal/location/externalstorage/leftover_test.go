package externalstorage

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/snapshot"
)

const (
	here   = "0b2fd5a2-52ba-4a9b-a2bd-06a9bd0a0f4c" // the UID of Velero's namespace
	one    = "11111111-1111-4111-8111-111111111111" // those of backups
	two    = "22222222-2222-4222-8222-222222222222"
	absent = "33333333-3333-4333-8333-333333333333"
)

func backupOf(uid string, phase velerov1.BackupPhase) *velerov1.Backup {
	return &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "b-" + uid[:1], UID: types.UID(uid)}, Status: velerov1.BackupStatus{Phase: phase}}
}

// parts returns the objects of a snapshot of volume v: a requested, m created by the
// controller, h home, d home data.
func parts(uid, which string) (vss, all []unstructured.Unstructured) {
	backup := backupOf(uid, "")
	name := nameOf(here, backup, "v")
	origin := snapshot.Origin{Installation: here, Backup: backup.Name, BackupUID: uid}
	id := &Identity{Namespace: "velero", Name: name, Data: name, Volume: "v", Installation: here, Backup: backup.Name, BackupUID: uid, Source: map[string]any{"hostPath": map[string]any{"snapshot": "/tmp/x"}}}
	for _, part := range which {
		switch part {
		case 'a':
			o := object("VolumeSnapshot", "shop", name)
			origin.Mark(o)
			vss = append(vss, *o)
		case 'm':
			o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{snapshotRef: map[string]any{"name": fmt.Sprintf("shop/%s-%s", name, absent)}}}}
			o.SetName("k8s-volume-snapshot-" + uid)
			all = append(all, *o)
		case 'h':
			vss = append(vss, *id.home(conditionReady, nil, metav1.Now().Time))
		case 'd':
			all = append(all, *id.homeData(metav1.Now().Time))
		}
	}
	return vss, all
}

func TestVerdict(t *testing.T) {
	backups := []velerov1.Backup{}
	for uid, phase := range map[string]velerov1.BackupPhase{one: velerov1.BackupPhaseCompleted, two: velerov1.BackupPhaseFailed} {
		backups = append(backups, *backupOf(uid, phase))
	}
	running := "44444444-4444-4444-8444-444444444444"
	backups = append(backups, *backupOf(running, velerov1.BackupPhaseInProgress))
	for _, test := range []struct {
		name, uid, which string
		over             bool
		reason           string
	}{
		{"what a backup is made of", one, "hd", false, "backup b-1 is Completed"},
		{"being deleted with its backup", one, "d", false, "backup b-1 is Completed"},
		{"asked for and not moved", one, "am", true, "backup b-1 is Completed"},
		{"moved by half, or forged", one, "amhd", false, "backup b-1 is Completed"},
		{"moved by half, of a failed backup", two, "amhd", true, "backup b-2 is Failed"},
		{"forged, of a backup that may come back", absent, "amhd", false, "Velero may find that backup in the object store again"},
		{"of a failed backup", two, "hd", true, "backup b-2 is Failed"},
		{"only asked for", two, "a", true, "backup b-2 is Failed"},
		{"its VolumeSnapshot went with the namespace", two, "m", true, "backup b-2 is Failed"},
		{"of a running backup", running, "amd", false, "backup b-4 is InProgress"},
		{"of a backup that is gone", absent, "am", true, "backup b-3 is gone"},
		{"of a backup that is gone, without a mark", absent, "m", true, "backup with the UID " + absent + " is gone"},
		{"of a backup that may come back", absent, "hd", false, "Velero may find that backup in the object store again"},
	} {
		t.Run(test.name, func(t *testing.T) {
			vss, all := parts(test.uid, test.which)
			found := gather(vss, all, here, "velero")
			require.Len(t, found, 1)
			have := ""
			for letter, o := range map[string]*unstructured.Unstructured{"a": found[0].requested, "m": found[0].created, "h": found[0].home, "d": found[0].homeData} {
				if o != nil {
					have += letter
				}
			}
			assert.ElementsMatch(t, []rune(test.which), []rune(have))
			over, reason := found[0].verdict(backups)
			assert.Equal(t, test.over, over)
			assert.Contains(t, reason, test.reason)
		})
	}
}

// Objects of users and of another Velero are ignored.
func TestGatherIgnoresForeign(t *testing.T) {
	vss, all := parts(one, "amhd")
	assert.Empty(t, gather(vss, all, "another installation", "velero"))

	mine := object("VolumeSnapshot", "shop", "mine")
	theirs := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{snapshotRef: map[string]any{"name": "shop/mine-" + absent}}}}
	assert.Empty(t, gather([]unstructured.Unstructured{*mine}, []unstructured.Unstructured{*theirs}, here, "velero"))

	// A tenant may copy the labels, but cannot create such a VolumeSnapshot in Velero's
	// namespace.
	forged := object("VolumeSnapshot", "shop", nameOf(here, backupOf(one, ""), "v"))
	snapshot.Origin{Installation: here, BackupUID: one}.Mark(forged)
	forged.Object["spec"] = map[string]any{"snapshotDataName": "somebody's"}
	found := gather([]unstructured.Unstructured{*forged}, nil, here, "velero")
	require.Len(t, found, 1)
	assert.Nil(t, found[0].home)
}
