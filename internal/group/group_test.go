package group

import (
	"errors"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/internal/api"
)

func backup() *velerov1.Backup {
	return &velerov1.Backup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "nightly", UID: types.UID("0f3a9b1e-7d52-4a55-8f0e-2f6f0a1f7c11")},
		Spec: velerov1.BackupSpec{
			StorageLocation: "default", DataMover: "acme", CSISnapshotTimeout: metav1.Duration{Duration: time.Minute},
			UploaderConfig: &velerov1.UploaderConfigForBackup{ParallelFilesUpload: 7},
		},
	}
}

func claim(request string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "data", UID: types.UID("7d0c6b52-91c4-4d0e-8c35-b7b4ef1dfb02"),
			Labels: map[string]string{"app": "db"}, Annotations: map[string]string{api.AnnotationNoSnapshot: "of another backup"},
		},
		Spec:   corev1.PersistentVolumeClaimSpec{StorageClassName: ptr.To("fast")},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	if request != "" {
		c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(request)}
	}
	return c
}

func taken(size string) *snapshotv1.VolumeSnapshot {
	vs := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "velero-data-1"},
		Spec:       snapshotv1.VolumeSnapshotSpec{VolumeSnapshotClassName: ptr.To("snap")},
		Status:     &snapshotv1.VolumeSnapshotStatus{},
	}
	if size != "" {
		vs.Status.RestoreSize = ptr.To(resource.MustParse(size))
	}
	return vs
}

func TestClaimWithItsSnapshot(t *testing.T) {
	before := claim("1Gi")
	got := withSnapshot(before, taken(""), backup())
	assert.Equal(t, map[string]string{"app": "db", "velero.io/volume-snapshot-name": "velero-data-1", "velero.io/backup-name": "nightly"}, got.Labels)
	assert.Equal(t, map[string]string{
		"velero.io/volume-snapshot-name":                 "velero-data-1",
		"backup.velero.io/must-include-additional-items": "true",
	}, got.Annotations)
	assert.Equal(t, claim("1Gi"), before, "the caller's stays as it is")
}

func TestRequestIsRaised(t *testing.T) {
	for name, test := range map[string]struct{ request, size, want string }{
		"larger":           {"1Gi", "2Gi", "2Gi"},
		"smaller":          {"3Gi", "2Gi", "3Gi"},
		"no request":       {"", "2Gi", "2Gi"},
		"size not told of": {"1Gi", "", "1Gi"},
	} {
		t.Run(name, func(t *testing.T) {
			c := claim(test.request)
			raiseRequest(c, taken(test.size))
			request := c.Spec.Resources.Requests[corev1.ResourceStorage]
			assert.Equal(t, test.want, request.String())
		})
	}
}

func TestClaimWithoutASnapshot(t *testing.T) {
	for name, test := range map[string]struct {
		phase  corev1.PersistentVolumeClaimPhase
		reason string
		want   string
	}{
		"bound":       {corev1.ClaimBound, "disk on fire", "disk on fire"},
		"lost":        {corev1.ClaimLost, "disk on fire", "disk on fire"},
		"never bound": {corev1.ClaimPending, "disk on fire", "of another backup"},
		"long reason": {corev1.ClaimBound, strings.Repeat("x", 10_000), strings.Repeat("x", reasonLimit)},
	} {
		t.Run(name, func(t *testing.T) {
			log, said := quiet()
			c := claim("1Gi")
			c.Status.Phase = test.phase
			answer := (&run{Groups: &Groups{log: log}}).without(c, errors.New(test.reason))
			assert.Equal(t, test.want, answer.Claim.Annotations[api.AnnotationNoSnapshot])
			assert.Empty(t, answer.Additional)
			assert.Equal(t, "snapshot-"+string(c.UID), answer.Operation, "it sees to what is left")
			require.Len(t, said.Entries, 1)
			assert.Equal(t, logrus.ErrorLevel, said.LastEntry().Level)
			assert.Contains(t, said.LastEntry().Message, "claim shop/data is backed up without a snapshot of its volume: "+test.reason[:10])
		})
	}
}

// quiet returns a log that records its entries.
func quiet() (logrus.FieldLogger, *logrustest.Hook) { return logrustest.NewNullLogger() }

func TestRecordOfAnEarlierProcess(t *testing.T) {
	left := func(phase string) *record {
		return &record{ConfigMap: &corev1.ConfigMap{Data: map[string]string{recordPhase: phase, recordReason: "disk on fire"}}}
	}
	require.NoError(t, (*record)(nil).failed())
	require.NoError(t, left(phaseTaken).failed())
	require.EqualError(t, left(phaseFailed).failed(), "disk on fire")
	require.ErrorIs(t, left(phaseBegun).failed(), errDied)
	require.ErrorIs(t, left("").failed(), errDied)
}
