package faults

import (
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/tests/fake"
)

const noSnapshot = "stillpoint.io/no-snapshot"

// Velero starts the plugin anew when its process has died. What the first process has
// frozen and taken for all volumes of a workload counts for the second, too.
func TestASecondProcessGoesOnFromTheFirst(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		between func(bed *fake.Bed, app *fake.Workload)
		refused string
	}{
		"nothing has changed": {},
		"the other snapshot was deleted": {
			between: func(bed *fake.Bed, app *fake.Workload) {
				for _, vs := range snapshotsOf(bed) {
					if *vs.Spec.Source.PersistentVolumeClaimName == app.Claims[1] {
						bed.API.Delete("volumesnapshots", app.Namespace, vs.Name)
					}
				}
			},
			refused: "find the snapshot that an earlier plugin process took",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
			backup, r := bed.Backup(fake.WithPolicy), fake.NewResult()
			first := bed.Velero()
			first.Begin()
			first.BackUpClaim(backup, app.Namespace, app.Claims[0], r)
			require.Empty(t, first.Errors())
			require.Len(t, snapshotsOf(bed), 2)
			if test.between != nil {
				test.between(bed, app)
			}

			second := bed.Velero()
			second.Begin()
			second.BackUpClaim(backup, app.Namespace, app.Claims[1], r)
			claim := r.Claims[app.Claims[1]]
			require.NotNil(t, claim, r.Dropped)
			assert.Equal(t, "sync freeze frozen thawed", strings.Join(bed.Node.FileSystem("shop", app.Claims[1]).Journal(), " "), "frozen once")
			if test.refused == "" {
				assert.Empty(t, second.Errors())
				assert.True(t, second.Said(logrus.InfoLevel, "an earlier plugin process", "shop/db"), second.Lines(logrus.InfoLevel))
				assert.NotEmpty(t, claim.Labels["velero.io/volume-snapshot-name"])
				return
			}
			assert.True(t, second.Said(logrus.ErrorLevel, test.refused), second.Errors())
			assert.NotEmpty(t, claim.Annotations[noSnapshot], "a snapshot that is taken now is of another moment")
		})
	}
}

// A freeze that failed is not tried again by the second process: the volumes that the
// first one has backed up would be of another moment.
func TestASecondProcessTakesNothingWhereTheFirstFailed(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	bed.Node.Container("shop", app.Pods[0].Name, "main").RemoveProgram("fsfreeze")
	backup, r := bed.Backup(fake.WithPolicy), fake.NewResult()
	for i, v := range []*fake.Velero{bed.Velero(), bed.Velero()} {
		v.Begin()
		v.BackUpClaim(backup, app.Namespace, app.Claims[i], r)
		assert.NotEmpty(t, v.Errors())
		require.NotNil(t, r.Claims[app.Claims[i]], r.Dropped)
		assert.NotEmpty(t, r.Claims[app.Claims[i]].Annotations[noSnapshot])
	}
	assert.Empty(t, snapshotsOf(bed))
	assert.NotContains(t, bed.Node.FileSystem("shop", app.Claims[1]).Journal(), "frozen")
}

// A claim that came into being between two processes was not frozen with the others.
func TestAClaimThatIsNewForTheSecondProcess(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	backup, r := bed.Backup(fake.WithPolicy), fake.NewResult()
	first := bed.Velero()
	first.Begin()
	first.BackUpClaim(backup, app.Namespace, app.Claims[0], r)
	require.Empty(t, first.Errors())

	more := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2, Pod: func(pod *corev1.Pod) { pod.UID = app.Pods[0].UID }})
	second := bed.Velero()
	second.Begin()
	second.BackUpClaim(backup, more.Namespace, "db-data1", r)
	assert.True(t, second.Said(logrus.ErrorLevel, "db-data1 was not there when an earlier plugin process"), second.Errors())
	require.NotNil(t, r.Claims["db-data1"], r.Dropped)
	assert.NotEmpty(t, r.Claims["db-data1"].Annotations[noSnapshot])
}
