package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestBuiltInProfiles(t *testing.T) {
	c := Default("velero")
	for driver, classes := range map[string]map[string]bool{
		"linstor.csi.linbit.com": {"": false, "snap.linstor.csi.linbit.com/type=S3": true, "snap.linstor.csi.linbit.com/type=Linstor": false},
		"driver.longhorn.io":     {"": true, "type=bak": true, "type=snap": false},
		"csi.storageos.com":      {"": false},
		"ebs.csi.aws.com":        {"": true},
		"csi.example.com":        {"": false},
	} {
		for parameter, exported := range classes {
			parameters := map[string]string{}
			if key, value, found := strings.Cut(parameter, "="); found {
				parameters[key] = value
			}
			assert.Equal(t, exported, c.Driver(driver).Exported(parameters), "%s with %s", driver, parameter)
		}
	}
	assert.Equal(t, RestoreFromExport, c.Driver("csi.storageos.com").RestoreFrom)
	assert.Equal(t, FreezeDriver, c.Driver("io.openebs.csi-mayastor").Freeze)
	assert.Equal(t, FreezeFlush, c.Driver("local.csi.openebs.io").Freeze)
	assert.Empty(t, errorsOf(builtIn), "what the configuration would refuse is not built in")
}

func errorsOf(profiles []DriverProfile) field.ErrorList {
	return (&Config{Drivers: profiles}).validate()
}

func TestDriver(t *testing.T) {
	c := &Config{Drivers: []DriverProfile{{Name: "driver.longhorn.io"}}}
	assert.False(t, c.Driver("driver.longhorn.io").Exported(nil), "the configuration has the last word")
	assert.True(t, c.Driver("ebs.csi.aws.com").Exported(nil))
}

func TestCanSnapshot(t *testing.T) {
	modes := func(modes ...corev1.PersistentVolumeAccessMode) []corev1.PersistentVolumeAccessMode { return modes }
	assert.True(t, DriverProfile{}.CanSnapshot(modes(corev1.ReadWriteMany)))
	only := DriverProfile{AccessModes: modes(corev1.ReadWriteOnce, corev1.ReadWriteOncePod)}
	assert.True(t, only.CanSnapshot(modes(corev1.ReadWriteOnce)))
	assert.False(t, only.CanSnapshot(modes(corev1.ReadWriteOnce, corev1.ReadOnlyMany)))
}

func TestDeletesSnapshotsOf(t *testing.T) {
	c := &Config{DataMovers: []DataMover{{"acme", true}, {"other", false}}}
	for mover, deletes := range map[string]bool{"": true, "velero": true, "acme": true, "other": false, "unknown": false} {
		assert.Equal(t, deletes, c.DeletesSnapshotsOf(mover), mover)
	}
}
