package e2e

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/label"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// oftenFlags have Velero look every 2 s whether the operations of a backup have ended,
// and each time that it could look for backups in the object store. Its own 10 s and
// one to two minutes are what the walk-through and the recovery wait for.
var oftenFlags = []string{"--item-operation-sync-frequency=2s", "--backup-sync-period=10s"}

func isOften(arg string) bool { return slices.Contains(oftenFlags, arg) }

// often is set for the first test, and taken back after the last.
var often struct {
	sync.Once
	on *cluster.Cluster
}

// atItsOwnPace takes oftenFlags back.
func atItsOwnPace() error {
	if often.on == nil {
		return nil
	}
	return changeFlags(context.Background(), often.on, func(args []string) []string {
		return slices.DeleteFunc(args, isOften)
	})
}

// connect connects to the test bed and has Velero run the plugin under test,
// which `make test` has built. The test must leave no snapshot in the storage.
func connect(t *testing.T) *cluster.Cluster {
	t.Helper()
	c := cluster.Connect(t)
	if binary := os.Getenv("STILLPOINT_PLUGIN"); binary != "" {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		require.NoError(t, c.InstallPlugin(ctx, binary))
	}
	often.Do(func() {
		often.on = c
		require.NoError(t, changeFlags(t.Context(), c, func(args []string) []string {
			// A run that was cut off may have left it.
			return append(slices.DeleteFunc(args, isOften), oftenFlags...)
		}))
	})
	c.LeavesNoSnapshots(t)
	return c
}

// backup is a backup that has been asked for.
type backup struct {
	t    *testing.T
	c    *cluster.Cluster
	name string
	// said is what log has returned.
	said string
}

// startBackup asks for a backup of a namespace, as `velero backup create` does.
func startBackup(t *testing.T, c *cluster.Cluster, namespace string, change func(*velerov1.BackupSpec)) *backup {
	t.Helper()
	return startBackupNamed(t, c, "e2e-"+rand.String(6), namespace, change)
}

func startBackupNamed(t *testing.T, c *cluster.Cluster, name, namespace string, change func(*velerov1.BackupSpec)) *backup {
	t.Helper()
	b := &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.VeleroNamespace, Name: name}}
	b.Spec.IncludedNamespaces = []string{namespace}
	b.Spec.StorageLocation = "default"
	b.Spec.TTL.Duration = time.Hour
	if change != nil {
		change(&b.Spec)
	}
	require.NoError(t, c.Objects().Create(t.Context(), b))
	t.Cleanup(func() {
		_ = c.Objects().Create(context.Background(), &velerov1.DeleteBackupRequest{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: cluster.VeleroNamespace, GenerateName: b.Name + "-",
				Labels: map[string]string{velerov1.BackupNameLabel: label.GetValidName(b.Name), velerov1.BackupUIDLabel: string(b.UID)},
			},
			Spec: velerov1.DeleteBackupRequestSpec{BackupName: b.Name},
		})
	})
	return &backup{t: t, c: c, name: b.Name}
}

// finished waits until a backup has ended and returns its phase.
func (b *backup) finished(limit time.Duration) velerov1.BackupPhase {
	b.t.Helper()
	found := &velerov1.Backup{}
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
		err := b.c.Objects().Get(b.t.Context(), crclient.ObjectKey{Namespace: cluster.VeleroNamespace, Name: b.name}, found)
		if err != nil {
			continue // the API server may be the one under test
		}
		switch found.Status.Phase {
		case velerov1.BackupPhaseFailed:
			if startedTwice(found) {
				continue // the first start goes on, and reports its own phase at the end
			}
			return found.Status.Phase
		case velerov1.BackupPhaseCompleted, velerov1.BackupPhasePartiallyFailed, velerov1.BackupPhaseFailedValidation:
			return found.Status.Phase
		default:
		}
	}
	b.t.Fatalf("backup %s is %s after %s", b.name, found.Status.Phase, limit)
	return ""
}

// startedTwice reports whether Velero has started a backup twice. The queue of Velero 1.18
// can see one as queued that has begun, and the second start fails.
func startedTwice(backup *velerov1.Backup) bool {
	return strings.Contains(backup.Status.FailureReason, "already exists in object storage")
}

// log returns what matters of the log of a backup that has ended: our lines,
// warnings, errors and the VolumeSnapshots that Velero created.
func (b *backup) log() string {
	b.t.Helper()
	if b.said != "" {
		return b.said
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	text, err := b.c.Velero(ctx, "backup", "logs", b.name)
	require.NoError(b.t, err)
	var lines strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "pluginName=stillpoint") || strings.Contains(line, "Created VolumeSnapshot") || said(line, "error", "warning") != "" {
			lines.WriteString(line)
		}
	}
	b.said = lines.String()
	return b.said
}

// said are the lines of the log with one of the levels.
func said(log string, levels ...string) string {
	var lines []string
	for line := range strings.Lines(log) {
		for _, level := range levels {
			if strings.Contains(line, "level="+level) {
				lines = append(lines, line)
			}
		}
	}
	return strings.Join(lines, "")
}

var frozenMillis = regexp.MustCompile(`frozenMillis=(\d+)`)

// frozenFor reads from the log how long workloads were frozen.
func frozenFor(t *testing.T, log string) []time.Duration {
	t.Helper()
	var all []time.Duration
	for _, match := range frozenMillis.FindAllStringSubmatch(log, -1) {
		millis, err := strconv.Atoi(match[1])
		require.NoError(t, err)
		all = append(all, time.Duration(millis)*time.Millisecond)
	}
	return all
}
