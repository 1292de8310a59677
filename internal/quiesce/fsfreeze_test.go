package quiesce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// prober answers probes by "pod/container". Other containers have no shell.
type prober struct {
	answers map[string]string
	asked   []string
}

func (p *prober) Exec(_ context.Context, container podexec.Container, _ []string, streams podexec.Streams) error {
	name := container.Pod + "/" + container.Name
	p.asked = append(p.asked, name)
	output, ok := p.answers[name]
	if !ok {
		fmt.Fprint(streams.Stderr, "sh: not found\n")
		return fmt.Errorf("exec in %s: %w", container, errors.New("exit code 127"))
	}
	_, err := io.WriteString(streams.Stdout, output)
	return err
}

// volume is a mount of a claim in a container, or of an emptyDir if claim is "".
type volume struct{ container, claim, path, subPath string }

// pod returns a running pod with a container for each name in volumes.
func pod(name, node string, volumes ...volume) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	at := map[string]int{}
	for i, v := range volumes {
		source := corev1.Volume{Name: fmt.Sprintf("v%d", i)}
		if v.claim == "" {
			source.EmptyDir = &corev1.EmptyDirVolumeSource{}
		} else {
			source.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.claim}
		}
		p.Spec.Volumes = append(p.Spec.Volumes, source)
		if _, ok := at[v.container]; !ok {
			at[v.container] = len(p.Spec.Containers)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: v.container})
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: v.container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			})
		}
		c := &p.Spec.Containers[at[v.container]]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: source.Name, MountPath: v.path, SubPath: v.subPath})
	}
	return p
}

func claim(name string, change ...func(*corev1.PersistentVolumeClaim)) corev1.PersistentVolumeClaim {
	c := corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: "pv-" + name,
		},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func accessMode(modes ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = modes }
}

func blockMode(c *corev1.PersistentVolumeClaim) {
	mode := corev1.PersistentVolumeBlock
	c.Spec.VolumeMode = &mode
}

// mounted returns a line of mountinfo for a volume on a device of its own.
func mounted(device, path string) string {
	return fmt.Sprintf("2120 2101 %s / %s rw,relatime - ext4 /dev/sdx rw", device, path)
}

func noProfile(context.Context, *corev1.PersistentVolumeClaim) (config.DriverProfile, error) {
	return config.DriverProfile{}, nil
}

// instead is the advice for a claim that cannot be frozen.
const instead = "quiesce the application with a blueprint of its own, name the file systems to freeze by the annotation option.stillpoint.io/paths, " +
	"or leave the claim out by the annotation stillpoint.io/quiesce: none on it"

func TestChoose(t *testing.T) {
	for name, test := range map[string]struct {
		claims    []corev1.PersistentVolumeClaim
		pods      []corev1.Pod
		container string
		paths     []string
		answers   map[string]string
		places    []string // pod/container:path
		text      string
	}{
		"all claims, by name": {
			claims:  []corev1.PersistentVolumeClaim{claim("wal"), claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "wal", "/wal", ""}, volume{"pg", "data", "/data", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/data"), mounted("8:32", "/wal"))},
			places:  []string{"db-0/pg:/data", "db-0/pg:/wal"},
		},
		"claims that are not snapshotted are left alone": {
			claims:  []corev1.PersistentVolumeClaim{claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "cache", "/cache", ""}, volume{"pg", "data", "/data", ""}, volume{"pg", "", "/tmp", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/data"), mounted("8:32", "/cache"))},
			places:  []string{"db-0/pg:/data"},
		},
		"nothing to freeze": {
			claims: []corev1.PersistentVolumeClaim{claim("other")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
		},
		"the first container that can": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods: []corev1.Pod{pod("db-0", "n1", volume{"bare", "data", "/d", ""}, volume{"pg", "data", "/data", ""}, volume{"exporter", "data", "/e", ""},
				volume{"freezer", "data", "/f", ""}, volume{"spare", "data", "/g", ""})},
			answers: map[string]string{
				"db-0/pg":       answer(unprivileged, true, mounted("8:16", "/data")),
				"db-0/exporter": answer(privileged, false, mounted("8:16", "/e")),
				"db-0/freezer":  answer(privileged, true, mounted("8:16", "/f")),
				"db-0/spare":    answer(privileged, true, mounted("8:16", "/g")),
			},
			places: []string{"db-0/freezer:/f"},
		},
		"the whole volume before a part of it": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/part", "pg/main"}, volume{"pg", "data", "/data", ""})},
			answers: map[string]string{
				"db-0/pg": answer(privileged, true, "2120 2101 8:16 /pg/main /part rw - ext4 /dev/sdb rw", mounted("8:16", "/data")),
			},
			places: []string{"db-0/pg:/data"},
		},
		"a part where there is nothing else": {
			claims:  []corev1.PersistentVolumeClaim{claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/part", "pg/main"})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, "2120 2101 8:16 /pg/main /part rw - ext4 /dev/sdb rw")},
			places:  []string{"db-0/pg:/part"},
		},
		"option container": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"freezer", "data", "/f", ""})},
			answers: map[string]string{
				"db-0/pg":      answer(privileged, true, mounted("8:16", "/data")),
				"db-0/freezer": answer(privileged, true, mounted("8:16", "/f")),
			},
			container: "freezer",
			places:    []string{"db-0/freezer:/f"},
		},
		"option container that cannot": {
			claims:    []corev1.PersistentVolumeClaim{claim("data")},
			pods:      []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"freezer", "data", "/f", ""})},
			answers:   map[string]string{"db-0/pg": answer(unprivileged, true, mounted("8:16", "/data")), "db-0/freezer": answer(privileged, true, mounted("8:16", "/f"))},
			container: "pg",
			text: "claim shop/data cannot be frozen from any container: container pg of pod shop/db-0 has no CAP_SYS_ADMIN " +
				"(set securityContext.privileged: true, best on a sidecar that mounts the volume and sleeps)",
		},
		"option container that there is not": {
			claims:    []corev1.PersistentVolumeClaim{claim("data")},
			pods:      []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			container: "freezr",
			text:      `claim shop/data: option container: "freezr" does not mount it in any running pod`,
		},
		"two pods on one volume": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("web-a", "n1", volume{"web", "data", "/data", ""}), pod("web-b", "n1", volume{"web", "data", "/data", ""})},
			answers: map[string]string{
				"web-a/web": answer(unprivileged, true, mounted("8:16", "/data")),
				"web-b/web": answer(privileged, true, mounted("8:16", "/data")),
			},
			places: []string{"web-b/web:/data"},
		},
		"two claims on one file system": {
			claims:  []corev1.PersistentVolumeClaim{claim("a"), claim("b")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "a", "/a", ""}, volume{"pg", "b", "/b", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/a"), mounted("8:16", "/b"))},
			places:  []string{"db-0/pg:/a"},
		},
		"the same device number on two nodes": {
			claims: []corev1.PersistentVolumeClaim{claim("data-db-0"), claim("data-db-1")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data-db-0", "/data", ""}), pod("db-1", "n2", volume{"pg", "data-db-1", "/data", ""})},
			answers: map[string]string{
				"db-0/pg": answer(privileged, true, mounted("8:16", "/data")),
				"db-1/pg": answer(privileged, true, mounted("8:16", "/data")),
			},
			places: []string{"db-0/pg:/data", "db-1/pg:/data"},
		},
		"ReadWriteMany": {
			claims: []corev1.PersistentVolumeClaim{claim("data", accessMode(corev1.ReadWriteOnce, corev1.ReadWriteMany))},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			text:   "claim shop/data is ReadWriteMany: a freeze on one node does not stop the writers on others; " + instead,
		},
		"ReadWriteOncePod": {
			claims:  []corev1.PersistentVolumeClaim{claim("data", accessMode(corev1.ReadWriteOncePod))},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/data"))},
			places:  []string{"db-0/pg:/data"},
		},
		"Block": {
			claims: []corev1.PersistentVolumeClaim{claim("data", blockMode)},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			text:   "claim shop/data has volumeMode Block: there is no file system to freeze; " + instead,
		},
		"a directory of the node": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"freezer", "data", "/f", ""})},
			answers: map[string]string{
				"db-0/pg":      answer(unprivileged, true, "2120 2101 8:1 /srv/pvc-1 /data rw - ext4 /dev/sda1 rw"),
				"db-0/freezer": answer(privileged, true, "2120 2101 8:1 /srv/pvc-1 /f rw - ext4 /dev/sda1 rw"),
			},
			text: "claim shop/data must not be frozen: in container pg of pod shop/db-0, /data is a directory of the node's own file system (device 8:1, ext4): freezing it would freeze the node",
		},
		"no container can, each with its reason": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"bare", "data", "/d", ""}, volume{"pg", "data", "/data", ""}, volume{"exporter", "data", "/e", ""}, volume{"odd", "data", "/o", ""})},
			answers: map[string]string{
				"db-0/pg":       answer(unprivileged, true, mounted("8:16", "/data")),
				"db-0/exporter": answer(privileged, false, mounted("8:16", "/e")),
				"db-0/odd":      "mount x\n",
			},
			text: "claim shop/data cannot be frozen from any container: " +
				"exec in container bare of pod shop/db-0: exit code 127 (Stillpoint needs sh in the container): sh: not found; " +
				"container pg of pod shop/db-0 has no CAP_SYS_ADMIN (set securityContext.privileged: true, best on a sidecar that mounts the volume and sleeps); " +
				"container exporter of pod shop/db-0 has no fsfreeze in its PATH (util-linux or busybox); " +
				"container odd of pod shop/db-0: read the mounts: parsing 'x' failed: not enough fields (1)",
		},
		"option paths": {
			claims:  []corev1.PersistentVolumeClaim{claim("data"), claim("wal")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/wal", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/data"), mounted("8:32", "/wal"))},
			paths:   []string{"/wal/"},
			places:  []string{"db-0/pg:/wal"},
		},
		"option paths in each pod that has it": {
			claims: []corev1.PersistentVolumeClaim{claim("data-db-0"), claim("data-db-1")},
			pods: []corev1.Pod{
				pod("db-0", "n1", volume{"pg", "data-db-0", "/data", ""}),
				pod("db-1", "n2", volume{"pg", "data-db-1", "/data", ""}, volume{"freezer", "data-db-1", "/data", ""}),
			},
			answers: map[string]string{
				"db-0/pg":      answer(privileged, true, mounted("8:16", "/data")),
				"db-1/pg":      answer(unprivileged, true, mounted("8:16", "/data")),
				"db-1/freezer": answer(privileged, true, mounted("8:16", "/data")),
			},
			paths:  []string{"/data"},
			places: []string{"db-0/pg:/data", "db-1/freezer:/data"},
		},
		"option paths: one file system at two of them": {
			claims:  []corev1.PersistentVolumeClaim{claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/b", ""}, volume{"pg", "data", "/a", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/a"), mounted("8:16", "/b"))},
			paths:   []string{"/b", "/a"},
			places:  []string{"db-0/pg:/b"},
		},
		"option paths: a claim that is not in the backup": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "cache", "/cache", ""})},
			paths:  []string{"/cache"},
			text:   "option paths: /cache is claim shop/cache, which this backup does not snapshot",
		},
		"option paths: nothing there": {
			claims: []corev1.PersistentVolumeClaim{claim("data")},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"freezer", "data", "/data", ""}, volume{"freezer", "", "/cache", ""})},
			paths:  []string{"/data/main"},
			text:   "option paths: no running container mounts a volume at /data/main; mounted are: freezer:/cache, freezer:/data, pg:/data",
		},
		"option paths: not in that container": {
			claims:    []corev1.PersistentVolumeClaim{claim("data")},
			pods:      []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"freezer", "data", "/f", ""})},
			container: "freezer",
			paths:     []string{"/data"},
			text:      "option paths: no running container mounts a volume at /data; mounted are: freezer:/f",
		},
		"option paths: the kernel does not agree": {
			claims:  []corev1.PersistentVolumeClaim{claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true)},
			paths:   []string{"/data"},
			text:    "path /data of pod shop/db-0 must not be frozen: in container pg of pod shop/db-0, no volume is mounted at /data",
		},
		"option paths: an emptyDir": {
			claims:  []corev1.PersistentVolumeClaim{claim("data")},
			pods:    []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "", "/tmp", ""})},
			answers: map[string]string{"db-0/pg": answer(privileged, true, "2120 2101 8:1 /var/lib/kubelet/pods/x/tmp /tmp rw - ext4 /dev/sda1 rw")},
			paths:   []string{"/tmp"},
			text:    "path /tmp of pod shop/db-0 must not be frozen: its volume v1 is not a claim, so it is not snapshotted",
		},
		"option paths: ReadWriteMany": {
			claims: []corev1.PersistentVolumeClaim{claim("data", accessMode(corev1.ReadWriteMany))},
			pods:   []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""})},
			paths:  []string{"/data"},
			text:   "claim shop/data is ReadWriteMany: a freeze on one node does not stop the writers on others; " + instead,
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := newFileSystems(&prober{answers: test.answers}, "shop", test.claims, noProfile)
			places, err := files.choose(t.Context(), 1, test.pods, test.container, test.paths)
			if test.text != "" {
				require.EqualError(t, err, test.text)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, p := range places {
				assert.Equal(t, "shop", p.container.Namespace)
				got = append(got, p.container.Pod+"/"+p.container.Name+":"+p.path)
			}
			assert.Equal(t, test.places, got)
		})
	}
}

func TestEachContainerIsProbedOnce(t *testing.T) {
	probes := &prober{answers: map[string]string{"db-0/pg": answer(privileged, true, mounted("8:16", "/data"), mounted("8:32", "/wal"))}}
	files := newFileSystems(probes, "shop", []corev1.PersistentVolumeClaim{claim("data"), claim("wal")}, noProfile)
	pods := []corev1.Pod{pod("db-0", "n1", volume{"bare", "data", "/d", ""}, volume{"bare", "wal", "/w", ""}, volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/wal", ""})}
	for range 2 {
		_, err := files.choose(t.Context(), 1, pods, "", nil)
		require.NoError(t, err)
	}
	assert.Equal(t, []string{"db-0/bare", "db-0/pg"}, probes.asked)
}

// A volume that two workloads share is frozen once, from the first workload.
func TestAVolumeOfTwoWorkloadsIsFrozenOnce(t *testing.T) {
	output := answer(privileged, true, mounted("8:16", "/data"))
	files := newFileSystems(&prober{answers: map[string]string{"a-0/c": output, "b-0/c": output}}, "shop", []corev1.PersistentVolumeClaim{claim("data")}, noProfile)
	first, err := files.choose(t.Context(), 1, []corev1.Pod{pod("a-0", "n1", volume{"c", "data", "/data", ""})}, "", nil)
	require.NoError(t, err)
	assert.Len(t, first, 1)
	second, err := files.choose(t.Context(), 2, []corev1.Pod{pod("b-0", "n1", volume{"c", "data", "/data", ""})}, "", nil)
	require.NoError(t, err)
	assert.Empty(t, second)
}

func TestFunctionsFreezeAndThawTheSame(t *testing.T) {
	pods := []corev1.Pod{pod("db-0", "n1", volume{"pg", "data", "/data", ""}, volume{"pg", "wal", "/my wal", ""}, volume{"freezer", "wal", "/wal", ""})}
	for name, test := range map[string]struct {
		args  render.Args
		paths []string
		text  string
	}{
		"no args":             {render.Args{}, []string{"/data", "/my wal"}, ""},
		"absent args":         {render.Args{"container": "", "paths": ""}, []string{"/data", "/my wal"}, ""},
		"container":           {render.Args{"container": "pg"}, []string{"/data", "/my wal"}, ""},
		"blanks between":      {render.Args{"paths": " /wal \t/data\n"}, []string{"/wal", "/data"}, ""},
		"commas between":      {render.Args{"paths": "/wal,/data, "}, []string{"/wal", "/data"}, ""},
		"container is a list": {render.Args{"container": []any{"pg"}}, nil, "args.container: is a list, must be a string"},
		"paths is a list":     {render.Args{"paths": []any{"/wal"}}, nil, "args.paths: is a list, must be a string"},
	} {
		t.Run(name, func(t *testing.T) {
			files := newFileSystems(&prober{answers: map[string]string{
				"db-0/pg":      answer(privileged, true, mounted("8:16", "/data"), mounted("8:32", `/my\040wal`)),
				"db-0/freezer": answer(privileged, true, mounted("8:32", "/wal")),
			}}, "shop", []corev1.PersistentVolumeClaim{claim("data"), claim("wal")}, noProfile)
			functions := files.functions(pods)
			freezes, err := functions["FreezeFileSystems"].Calls(t.Context(), test.args)
			if test.text != "" {
				require.EqualError(t, err, test.text)
				return
			}
			require.NoError(t, err)
			thaws, err := functions["ThawFileSystems"].Calls(t.Context(), test.args)
			require.NoError(t, err)
			require.Len(t, freezes, len(test.paths))
			require.Len(t, thaws, len(test.paths))
			for i, path := range test.paths {
				assert.Equal(t, []string{"fsfreeze", "--freeze", path}, freezes[i].Command)
				assert.Equal(t, []string{"fsfreeze", "--unfreeze", path}, thaws[i].Command)
				assert.Equal(t, ContainerOf(freezes[i]), ContainerOf(thaws[i]))
			}
		})
	}
}
