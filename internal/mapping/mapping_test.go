package mapping

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/config"
)

func class(name, driver string) snapshotv1.VolumeSnapshotClass {
	return snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver}
}

// here is a cluster with two classes of one driver, one of another, a driver
// without a class, and one that has a class and no CSIDriver.
var here = Target{
	Drivers: []string{"new.csi", "bare.csi", "single.csi"},
	Classes: []snapshotv1.VolumeSnapshotClass{
		class("fast", "new.csi"), class("slow", "new.csi"), class("alone", "single.csi"), class("odd", "undeclared.csi"),
	},
}

func driverTo(from, to string) config.Restore {
	return config.Restore{Drivers: []config.DriverMapping{{From: from, To: to}}}
}

func classTo(from, to string) config.Restore {
	return config.Restore{SnapshotClasses: []config.SnapshotClassMapping{{From: from, To: to}}}
}

func skip(from string) config.Restore {
	return config.Restore{SnapshotClasses: []config.SnapshotClassMapping{{From: from, Skip: true}}}
}

func both(a, b config.Restore) config.Restore {
	return config.Restore{Drivers: append(a.Drivers, b.Drivers...), SnapshotClasses: append(a.SnapshotClasses, b.SnapshotClasses...)}
}

func TestMap(t *testing.T) {
	byDriver := []config.SnapshotClassRule{{Match: config.Match{Drivers: []string{"new.csi"}}, Class: "slow"}}
	for name, test := range map[string]struct {
		source Source
		maps   config.Restore
		rules  []config.SnapshotClassRule
		want   *Mapped // without its reason
		reason []string
		err    []string
	}{
		"no map":                           {source: Source{"old.csi", "gold"}},
		"rules for backups are no map":     {source: Source{"new.csi", "gold"}, rules: byDriver},
		"a map of others":                  {source: Source{"old.csi", "gold"}, maps: both(driverTo("x.csi", "new.csi"), classTo("silver", "fast"))},
		"no class is no entry":             {source: Source{Driver: "old.csi"}, maps: classTo("gold", "fast")},
		"maps of a driver are not chained": {source: Source{"single.csi", ""}, maps: both(driverTo("old.csi", "single.csi"), driverTo("x.csi", "old.csi"))},
		"class": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "slow"),
			want: &Mapped{Driver: "new.csi", Class: "slow"}, reason: []string{"class by restore.snapshotClasses maps gold to slow"},
		},
		"class by its own entry, not by the rules": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "fast"), rules: byDriver,
			want: &Mapped{Driver: "new.csi", Class: "fast"},
		},
		"driver, then the class of it": {
			source: Source{"old.csi", "gold"}, maps: both(driverTo("old.csi", "new.csi"), classTo("gold", "fast")),
			want:   &Mapped{Driver: "new.csi", Class: "fast"},
			reason: []string{"restore.drivers maps driver old.csi to new.csi", "restore.snapshotClasses maps gold to fast"},
		},
		"driver, and the chain": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "new.csi"), rules: byDriver,
			want: &Mapped{Driver: "new.csi", Class: "slow"}, reason: []string{"restore.drivers maps driver old.csi to new.csi", "snapshotClasses"},
		},
		"driver, and its only class": {
			source: Source{"old.csi", ""}, maps: driverTo("old.csi", "single.csi"),
			want: &Mapped{Driver: "single.csi", Class: "alone"},
		},
		"driver without a class": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "bare.csi"),
			want: &Mapped{Driver: "bare.csi"}, reason: []string{"driver bare.csi has no VolumeSnapshotClass here"},
		},
		"driver without a CSIDriver": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "undeclared.csi"),
			want: &Mapped{Driver: "undeclared.csi", Class: "odd"},
		},
		"skipped class: the chain": {
			source: Source{"single.csi", "gold"}, maps: skip("gold"),
			want: &Mapped{Driver: "single.csi", Class: "alone"},
		},
		"no such driver": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "nowhere.csi"),
			err: []string{`restore.drivers maps driver "old.csi" of the backup to "nowhere.csi"`, "its drivers: bare.csi, new.csi, single.csi, undeclared.csi"},
		},
		"no such class": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "nowhere"),
			err: []string{`restore.snapshotClasses maps VolumeSnapshotClass "gold" of the backup to "nowhere", which this cluster does not have`, "classes of driver new.csi here: fast, slow"},
		},
		"no such class, and no other": {
			source: Source{"bare.csi", "gold"}, maps: classTo("gold", "nowhere"),
			err: []string{"classes of driver bare.csi here: none"},
		},
		"class of another driver": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "alone"),
			err: []string{`"gold" of the backup to "alone", which is of driver "single.csi" in this cluster, not of "new.csi"`, "here: fast, slow"},
		},
		"class of another driver than the mapped one": {
			source: Source{"single.csi", "gold"}, maps: both(driverTo("single.csi", "new.csi"), classTo("gold", "alone")),
			err: []string{`which is of driver "single.csi" in this cluster, not of "new.csi"`},
		},
		"the chain cannot decide": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "new.csi"),
			err: []string{"restore.drivers maps driver old.csi to new.csi: ", "fast", "slow"},
		},
		"the chain cannot decide for a skipped class": {
			source: Source{"new.csi", "gold"}, maps: skip("gold"),
			err: []string{"restore.snapshotClasses skips gold", "fast", "slow"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Map(test.source, &config.Config{Restore: test.maps, SnapshotClasses: test.rules}, here)
			if test.err != nil {
				for _, want := range test.err {
					assert.ErrorContains(t, err, want)
				}
				return
			}
			require.NoError(t, err)
			if got != nil {
				for _, want := range test.reason {
					assert.Contains(t, got.Reason, want)
				}
				got.Reason = ""
			}
			assert.Equal(t, test.want, got)
		})
	}
}

func TestMapClass(t *testing.T) {
	for name, test := range map[string]struct {
		source Source
		maps   config.Restore
		asked  bool  // for cluster resources
		want   Class // without its reason
		reason string
		err    string
	}{
		"no map": {source: Source{"old.csi", "gold"}, want: Class{Name: "gold", Driver: "old.csi"}},
		"left out": {
			source: Source{"old.csi", "gold"}, maps: skip("gold"),
			want: Class{Skip: true}, reason: "restore.snapshotClasses skips gold",
		},
		"left out, whatever its driver is mapped to": {
			source: Source{"old.csi", "gold"}, maps: both(driverTo("old.csi", "nowhere.csi"), skip("gold")),
			want: Class{Skip: true}, reason: "restore.snapshotClasses skips gold",
		},
		"another name that is not there": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "platinum"),
			err: `maps VolumeSnapshotClass "gold" of the backup to "platinum", which this cluster does not have; classes of driver new.csi here: fast, slow; --include-cluster-resources`,
		},
		"another name": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "platinum"), asked: true,
			want: Class{Name: "platinum", Driver: "new.csi"}, reason: "restore.snapshotClasses maps gold to platinum",
		},
		"another name that is there": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "fast"),
			want: Class{Skip: true}, reason: "restore.snapshotClasses maps gold to fast, which this cluster has",
		},
		"another name that is there, of another driver": {
			source: Source{"new.csi", "gold"}, maps: classTo("gold", "alone"), asked: true, err: `of driver "single.csi" in this cluster, not of "new.csi"`,
		},
		"another driver": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "new.csi"),
			want: Class{Name: "gold", Driver: "new.csi"}, reason: "restore.drivers maps driver old.csi to new.csi",
		},
		"another driver and name": {
			source: Source{"old.csi", "gold"}, asked: true, maps: both(driverTo("old.csi", "new.csi"), classTo("gold", "platinum")),
			want: Class{Name: "platinum", Driver: "new.csi"}, reason: "restore.snapshotClasses maps gold to platinum; restore.drivers maps driver old.csi to new.csi",
		},
		"another driver that is not there": {
			source: Source{"old.csi", "gold"}, maps: driverTo("old.csi", "nowhere.csi"), err: `maps driver "old.csi" of the backup to "nowhere.csi"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := MapClass(test.source, &config.Config{Restore: test.maps}, here, test.asked)
			if test.err != "" {
				assert.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.reason, got.Reason)
			got.Reason = ""
			assert.Equal(t, test.want, got)
		})
	}
}
