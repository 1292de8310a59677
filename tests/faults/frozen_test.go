package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"stillpoint.io/stillpoint/tests/fake"
)

const level = "stillpoint.io/level"

// blockDevice writes what sysfs has of a device; uuid is "" where it is not of device
// mapper.
func blockDevice(c *fake.Container, number, uuid string) {
	deviceAt(c, "/sys/dev/block/"+number, number, uuid)
}

func deviceAt(c *fake.Container, at, number, uuid string) {
	c.WriteFile(at+"/dev", number+"\n")
	if uuid != "" {
		c.WriteFile(at+"/dm/uuid", uuid+"\n")
		c.WriteFile(at+"/dm/name", "vg-pvc--1\n")
	}
}

// A device that the storage suspends for each snapshot freezes the file system that
// lies directly on it. Frozen by us, too, it could not be mounted again: it is
// written out, and said to be consistent by the storage.
func TestWhatTheStorageFreezesIsOnlyWrittenOut(t *testing.T) {
	t.Parallel()
	const lvm = "LVM-9PvNKLlFCxCc0VXcjOZWpKYXUqeGmLMZ"
	btrfs := func(member, number, uuid string) func(*fake.Container, *fake.FileSystem) {
		return func(c *fake.Container, fs *fake.FileSystem) {
			fs.Type, fs.Device = "btrfs", "0:45" // mountinfo has a number of no device
			deviceAt(c, "/sys/fs/btrfs/0f6c/devices/other", "8:16", "")
			deviceAt(c, "/sys/fs/btrfs/0f6c/devices/"+member, number, uuid)
			deviceAt(c, "/sys/fs/btrfs/77aa/devices/vdb", "8:32", "")
		}
	}
	for name, test := range map[string]struct {
		device        func(c *fake.Container, fs *fake.FileSystem)
		configuration string
		journal       string // of the file system, in words; "sync freeze frozen thawed" where we freeze
		level, told   string
	}{
		"a disk": {
			device:  func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, "") },
			journal: "sync freeze frozen thawed",
		},
		"LVM": {
			device:  func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, lvm) },
			journal: "sync sync", level: "filesystem by storage", told: "LVM (device 7:1)",
		},
		"DRBD": {
			device:  func(_ *fake.Container, fs *fake.FileSystem) { fs.Device = "147:1000" },
			journal: "sync sync", level: "filesystem by storage", told: "DRBD (device 147:1000)",
		},
		"LUKS on LVM": {
			device: func(c *fake.Container, fs *fake.FileSystem) {
				blockDevice(c, fs.Device, "CRYPT-LUKS2-4a2de2b12a0d4c5f9e3f-luks-pvc")
			},
			journal: "sync freeze frozen thawed",
		},
		"multipath": {
			device:  func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, "mpath-3600a098038314548") },
			journal: "sync freeze frozen thawed",
		},
		"btrfs on LVM": {
			device:  btrfs("db-data0", "253:3", lvm), // the fake's source is /dev/<claim>
			journal: "sync sync", level: "filesystem by storage", told: "LVM (device 253:3)",
		},
		"btrfs on DRBD": {
			device:  btrfs("db-data0", "147:3", ""),
			journal: "sync sync", level: "filesystem by storage", told: "DRBD (device 147:3)",
		},
		"btrfs on disks": {
			device:  btrfs("db-data0", "8:48", ""),
			journal: "sync freeze frozen thawed",
		},
		"a profile: flush": {
			device:        func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, "") },
			configuration: "drivers: [{name: disk.example.com, freeze: flush}]",
			journal:       "sync sync", level: "filesystem by storage", told: "freeze: flush",
		},
		"a profile: driver": {
			device:        func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, "") },
			configuration: "drivers: [{name: disk.example.com, freeze: driver}]",
			journal:       "", level: "filesystem by driver", told: "freeze: driver",
		},
		"a profile: always, and LVM all the same": {
			device:        func(c *fake.Container, fs *fake.FileSystem) { blockDevice(c, fs.Device, lvm) },
			configuration: "drivers: [{name: disk.example.com, freeze: always}]",
			journal:       "sync sync", level: "filesystem by storage", told: "LVM (device 7:1)",
		},
	} {
		for path, change := range paths {
			t.Run(name+": "+path, func(t *testing.T) {
				t.Parallel()
				bed := fake.New(t)
				if test.configuration != "" {
					bed.Configure("version: v1\n" + test.configuration + "\n")
				}
				app := bed.Deploy(fake.App{Annotations: fsfreeze})
				fs := bed.Node.FileSystem("shop", app.Claims[0])
				test.device(bed.Node.Container("shop", app.Pods[0].Name, "main"), fs)
				bed.Node.Run(app.Pods[0])

				code, said := checked(bed)
				assert.Zero(t, code, said)
				v := bed.Velero()
				r := v.Backup(bed.Backup(change), app)
				require.Empty(t, r.Dropped)
				assert.Empty(t, v.Errors())
				require.Len(t, bed.Storage.Snapshots(), 1)
				assert.Equal(t, test.journal, strings.Join(fs.Journal(), " "))
				assert.Equal(t, test.level, r.Claims[app.Claims[0]].Annotations[level])
				assert.True(t, v.Said(logrus.InfoLevel, "Quiesced Deployment shop/db", test.told, test.level), v.Lines(logrus.InfoLevel))
				assert.Contains(t, said, test.told)
				assert.Contains(t, said, test.level)
			})
		}
	}
}

// Nothing but sh and sync is needed where nothing is frozen: no privileged sidecar.
func TestWhatTheStorageFreezesNeedsNoPrivilege(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	c := bed.Node.Container("shop", app.Pods[0].Name, "main")
	c.WriteFile("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n")
	c.RemoveProgram("fsfreeze")
	fs := bed.Node.FileSystem("shop", app.Claims[0])
	blockDevice(c, fs.Device, "LVM-1")
	v := bed.Velero()
	r := v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Empty(t, v.Errors())
	assert.Equal(t, "filesystem by storage", r.Claims[app.Claims[0]].Annotations[level])

	c.RemoveProgram("sync")
	code, said := checked(bed)
	assert.Equal(t, 1, code)
	assert.Contains(t, said, "has no sync in its PATH")
}

// Whether it is LVM must be known before anything is frozen.
func TestDeviceMapperThatCannotBeReadIsNotFrozen(t *testing.T) {
	t.Parallel()
	for _, configured := range []bool{false, true} {
		t.Run(fmt.Sprint(configured), func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			if configured {
				bed.Configure("version: v1\ndrivers: [{name: disk.example.com, freeze: always}]\n")
			}
			app := bed.Deploy(fake.App{Annotations: fsfreeze})
			fs := bed.Node.FileSystem("shop", app.Claims[0])
			bed.Node.Container("shop", app.Pods[0].Name, "main").WriteFile("/proc/self/mountinfo", "200 100 253:3 / /data0 rw - xfs /dev/mapper/vg-pvc--1 rw\n")
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			if configured {
				assert.Empty(t, v.Errors())
				assert.Equal(t, "sync freeze frozen thawed", strings.Join(fs.Journal(), " "))
				return
			}
			assert.True(t, v.Said(logrus.ErrorLevel, "must not be frozen", "LVM or DRBD", "freeze"), v.Errors())
			assert.Empty(t, fs.Journal())
		})
	}
}

// Volumes that are not frozen are written to until each is cut.
func TestSeveralVolumesThatAreNotFrozenAreNotOfOneMoment(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	blockDevice(bed.Node.Container("shop", app.Pods[0].Name, "main"), bed.Node.FileSystem("shop", "db-data1").Device, "LVM-1")
	code, said := checked(bed)
	assert.Zero(t, code)
	assert.Contains(t, said, "WARNING: Not of one moment")
	v := bed.Velero()
	r := v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Empty(t, v.Errors())
	assert.True(t, v.Said(logrus.WarnLevel, "Not of one moment", "db-data1"), v.Lines(logrus.WarnLevel))
	assert.Equal(t, "sync freeze frozen thawed", strings.Join(bed.Node.FileSystem("shop", "db-data0").Journal(), " "))
	assert.Equal(t, "sync sync", strings.Join(bed.Node.FileSystem("shop", "db-data1").Journal(), " "))
	assert.Empty(t, r.Claims["db-data0"].Annotations[level])
	assert.Equal(t, "filesystem by storage", r.Claims["db-data1"].Annotations[level])
}

// kanister is the blueprint that users of K10 freeze file systems with.
func kanister(bed *fake.Bed) {
	phase := "{func: KubeExec, name: %s, args: {namespace: '{{ .Deployment.Namespace }}', pod: '{{ index .Deployment.Pods 0 }}', container: main, command: [fsfreeze, --%s, /data0]}}"
	bed.API.Put(bed.T, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: fake.VeleroNamespace, Name: "freeze-hooks", Labels: map[string]string{"stillpoint.io/blueprint": ""}},
		Data: map[string]string{"freeze-hooks": "actions:\n  backupPrehook: {phases: [" + fmt.Sprintf(phase, "pre", "freeze") + "]}\n" +
			"  backupPosthook: {phases: [" + fmt.Sprintf(phase, "post", "unfreeze") + "]}\n"},
	})
}

// A blueprint of the user's that freezes what the storage freezes is refused.
func TestBlueprintThatFreezesLVM(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	kanister(bed)
	app := bed.Deploy(fake.App{Annotations: map[string]string{"kanister.kasten.io/blueprint": "freeze-hooks"}})
	fs := bed.Node.FileSystem("shop", app.Claims[0])
	blockDevice(bed.Node.Container("shop", app.Pods[0].Name, "main"), fs.Device, "LVM-1")
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, "freeze-hooks", "phase pre runs fsfreeze", "/data0, which lies directly on LVM"), v.Errors())
	assert.Empty(t, fs.Journal())
	assert.Empty(t, bed.Storage.Snapshots())
}

// The flush before the freeze is an exec that the kubelet accepts, and runs before it.
func TestFileSystemsAreWrittenOutBeforeTheFreeze(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.Equal(t, "sync freeze frozen thawed", strings.Join(bed.Node.FileSystem("shop", app.Claims[0]).Journal(), " "))

	// Where that fails, the freeze writes out the rest, and the log says so.
	bed.Node.Container("shop", app.Pods[0].Name, "main").Program("sync", "#!/bin/sh\necho 'sync: unrecognized option: f' >&2\nexit 1\n")
	v = bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy, fake.Named("second")), app)
	assert.Empty(t, v.Lines(logrus.WarnLevel))
	assert.True(t, v.Said(logrus.InfoLevel, "Not written out before the freeze", "unrecognized option: f"), v.Lines(logrus.InfoLevel))
}

// A volume's subdirectory that a variable names is the volume's own.
func TestSubPathExpr(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		expr, root string
		refused    string
	}{
		"the pod's name":            {"$(POD)", "/db-6d4f-a", ""},
		"between words":             {"pods/$(POD)/$(TIER)-x", "/pods/db-6d4f-a/gold-x", ""},
		"a value with slashes":      {"$(DIR)", "/a/b", ""},
		"an escaped dollar":         {"$$(POD)", "/$(POD)", ""},
		"a foreign directory":       {"$(POD)", "/volumes/pvc-1/db-6d4f-a", "/data0 is the directory /volumes/pvc-1/db-6d4f-a of a larger file system"},
		"a name that no shell has":  {"$(pod.name)", "/db-6d4f-a", "the value of $(pod.name) in subPathExpr"},
		"nothing is run in a value": {"$(EVIL)", `/$(touch\040x)`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Pod: func(pod *corev1.Pod) {
				pod.Spec.Containers[0].VolumeMounts[0].SubPathExpr = test.expr
				pod.Spec.Containers[0].Env = []corev1.EnvVar{
					{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
					{Name: "TIER", Value: "gold"},
					{Name: "DIR", Value: "a/b"},
					{Name: "EVIL", Value: "$(touch x)"},
				}
			}})
			bed.Node.Container("shop", app.Pods[0].Name, "main").
				WriteFile("/proc/self/mountinfo", fmt.Sprintf("200 100 7:1 %s /data0 rw - ext4 /dev/sdb rw\n", test.root))
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			fs := bed.Node.FileSystem("shop", app.Claims[0])
			if test.refused == "" {
				assert.Empty(t, v.Errors())
				assert.Contains(t, fs.Journal(), "frozen")
				return
			}
			assert.True(t, v.Said(logrus.ErrorLevel, test.refused), v.Errors())
			assert.Empty(t, fs.Journal())
		})
	}
}

// The advice fits what keeps the container from freezing.
func TestAdviceForAContainerThatCannotFreeze(t *testing.T) {
	t.Parallel()
	const all, none, usual = "000001ffffffffff", "0000000000000000", "00000000a80425fb"
	for name, test := range map[string]struct {
		user, effective, bounding, uids string
		advice, not                     string
	}{
		"privileged, as user 1000":   {"1000", none, all, "0 0 4294967295", "runAsUser: 0", "privileged: true"},
		"unprivileged, as root":      {"0", usual, usual, "0 0 4294967295", "privileged: true", "runAsUser"},
		"unprivileged, as user 1000": {"1000", none, usual, "0 0 4294967295", "privileged: true, runAsUser: 0", ""},
		"in a user namespace":        {"0", all, all, "0 65536 65536", "hostUsers: false", "privileged: true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze})
			c := bed.Node.Container("shop", app.Pods[0].Name, "main")
			c.WriteFile("/proc/self/status", fmt.Sprintf("Uid:\t%[1]s\t%[1]s\t%[1]s\t%[1]s\nCapEff:\t%[2]s\nCapBnd:\t%[3]s\n", test.user, test.effective, test.bounding))
			c.WriteFile("/proc/self/uid_map", "         "+test.uids+"\n")
			code, said := checked(bed)
			assert.Equal(t, 1, code)
			assert.Contains(t, said, test.advice)
			if test.not != "" {
				assert.NotContains(t, said, test.not)
			}
		})
	}
}

// A process that dies while a workload is frozen has said so before.
func TestLineAtTheFreeze(t *testing.T) {
	t.Parallel()
	for path, change := range paths {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze})
			release := bed.Storage.StopSidecar()
			end := bed.Node.FileSystem("shop", app.Claims[0]).Stall()
			v := bed.Velero()
			done := make(chan struct{})
			go func() {
				defer close(done)
				v.Backup(bed.Backup(change), app)
			}()
			// Nobody knows whether it is frozen: the kernel has not answered.
			require.Eventually(t, func() bool {
				return v.Said(logrus.InfoLevel, "Quiescing Deployment shop/db: blueprints fsfreeze; volumes db-data0")
			}, 5*time.Second, 5*time.Millisecond)
			assert.False(t, v.Said(logrus.InfoLevel, "Quiesced"))
			end()
			// It is frozen, and nothing is cut.
			require.Eventually(t, func() bool { return v.Said(logrus.InfoLevel, "Quiesced Deployment shop/db", "volumes db-data0") }, 5*time.Second, 5*time.Millisecond)
			assert.True(t, bed.Node.FileSystem("shop", app.Claims[0]).Frozen())
			assert.False(t, v.Said(logrus.InfoLevel, "Thawed"))
			release()
			<-done
			assert.True(t, v.Said(logrus.InfoLevel, "Thawed Deployment shop/db"), v.Lines(logrus.InfoLevel))
		})
	}
}

// raw gives a pod a claim without a file system, as a device.
func raw(bed *fake.Bed, name string) func(*corev1.Pod) {
	bed.Deploy(fake.App{Name: name, Kind: "Pod", Claim: func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
		claim.Spec.VolumeMode, volume.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock), ptr.To(corev1.PersistentVolumeBlock)
	}})
	bed.API.Delete("pods", "shop", name) // its claim is what is wanted
	return func(pod *corev1.Pod) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "raw", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name + "-data0"},
		}})
		pod.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw"}}
	}
}

// A raw block device beside a file system is no reason not to freeze the latter.
func TestRawBlockDeviceBesideAFileSystem(t *testing.T) {
	t.Parallel()
	for path, change := range paths {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Pod: raw(bed, "disk")})
			app.Claims = append(app.Claims, "disk-data0")
			code, said := checked(bed)
			assert.Zero(t, code, said)
			assert.Contains(t, said, "WARNING: Not frozen: claim shop/disk-data0")
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			require.Empty(t, r.Dropped)
			assert.Empty(t, v.Errors())
			assert.True(t, v.Said(logrus.WarnLevel, "claim shop/disk-data0", "volumeMode Block", "crash-consistent", "stillpoint.io/quiesce: none"), v.Lines(logrus.WarnLevel))
			assert.Equal(t, "sync freeze frozen thawed", strings.Join(bed.Node.FileSystem("shop", "db-data0").Journal(), " "))
			assert.Equal(t, "crash", r.Claims["disk-data0"].Annotations[level])
			assert.Empty(t, r.Claims["db-data0"].Annotations[level])
			assert.Len(t, bed.Storage.Snapshots(), 2)
		})
	}
}

// Where a device is all that there is, nothing can be frozen, and the message says
// what to do. So it does for a claim of several nodes.
func TestClaimsThatCannotBeFrozenAtAll(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume){
		"volumeMode Block": func(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) {
			claim.Spec.VolumeMode, volume.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock), ptr.To(corev1.PersistentVolumeBlock)
		},
		"ReadWriteMany": func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Claim: change})
			v := bed.Velero()
			v.Backup(bed.Backup(fake.WithPolicy), app)
			assert.True(t, v.Said(logrus.ErrorLevel, name, "option.stillpoint.io/paths", "stillpoint.io/quiesce: none"), v.Errors())
			assert.Empty(t, bed.Storage.Snapshots())
		})
	}
}

// A driver whose snapshots need a quiesced workload gets none of a device that
// nothing quiesces.
func TestRawBlockDeviceWhereQuiesceIsRequired(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	bed.Configure("version: v1\ndrivers: [{name: disk.example.com, quiesce: required}]\n")
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Pod: raw(bed, "disk")})
	app.Claims = append(app.Claims, "disk-data0")
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.True(t, v.Said(logrus.ErrorLevel, "claim shop/disk-data0", "requires a quiesced workload"), v.Errors())
	assert.Empty(t, bed.Storage.Snapshots())
}

// The level is a mark of one backup: a restore does not bring it back, and a later
// backup does not repeat it.
func TestLevelIsOfOneBackup(t *testing.T) {
	t.Parallel()
	for path, change := range paths {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			bed := fake.New(t)
			app := bed.Deploy(fake.App{Annotations: fsfreeze, Claim: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				metav1.SetMetaDataAnnotation(&claim.ObjectMeta, level, "of long ago")
			}})
			backup := bed.Backup(change)
			r := bed.Velero().Backup(backup, app)
			require.Contains(t, bed.Node.FileSystem("shop", "db-data0").Journal(), "frozen")
			assert.NotContains(t, r.Claims["db-data0"].Annotations, level)

			metav1.SetMetaDataAnnotation(&r.Claims["db-data0"].ObjectMeta, level, "filesystem by storage")
			out := bed.Restoring().Run(again(bed, backup), bed.Tarball(r))
			require.Empty(t, out.Errors)
			restored := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "again", Name: "db-data0"}}
			require.True(t, bed.API.Get(t, restored))
			assert.NotContains(t, restored.Annotations, level)
		})
	}
}

// What is only written out has nothing to undo: the freeze of a third party on another
// volume of the same container is left alone.
func TestThirdPartyBesideWhatIsWrittenOut(t *testing.T) {
	t.Parallel()
	bed := fake.New(t)
	app := bed.Deploy(fake.App{Annotations: fsfreeze, Volumes: 2})
	blockDevice(bed.Node.Container("shop", app.Pods[0].Name, "main"), bed.Node.FileSystem("shop", "db-data1").Device, "LVM-1")
	other := bed.Node.FileSystem("shop", "db-data0")
	require.NoError(t, other.Freeze())
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.NotEmpty(t, v.Errors())
	assert.True(t, other.Frozen(), other.Journal())
	require.NoError(t, other.Thaw())
}
