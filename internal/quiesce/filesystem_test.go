package quiesce

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// containerMounts is /proc/self/mountinfo of a container of containerd. The node's root
// file system is on 8:1.
const containerMounts = `2101 1984 0:312 / / rw,relatime master:605 - overlay overlay rw,lowerdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/91/fs,upperdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/104/fs,workdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/104/work
2102 2101 0:316 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
2103 2101 0:317 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
2104 2103 0:318 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
2105 2103 0:302 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
2106 2101 0:310 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
2107 2106 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
2108 2101 8:1 /var/lib/kubelet/pods/5bd9c2d5/etc-hosts /etc/hosts rw,relatime - ext4 /dev/sda1 rw,discard,errors=remount-ro
2109 2103 8:1 /var/lib/kubelet/pods/5bd9c2d5/containers/db/0f5b6d57 /dev/termination-log rw,relatime - ext4 /dev/sda1 rw,discard,errors=remount-ro
2110 2101 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/1f/hostname /etc/hostname rw,relatime - ext4 /dev/sda1 rw,discard,errors=remount-ro
2111 2101 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/1f/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/sda1 rw,discard,errors=remount-ro
2112 2103 0:301 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
2113 2101 0:299 / /run/secrets/kubernetes.io/serviceaccount ro,relatime - tmpfs tmpfs rw,size=16262756k
`

// answer returns the output of probeScript.
func answer(caps string, fsfreeze bool, mounts ...string) string {
	var out strings.Builder
	out.WriteString("CapEff:\t" + caps + "\n")
	if fsfreeze {
		out.WriteString("fsfreeze\n")
	}
	for line := range strings.Lines(containerMounts) {
		out.WriteString("mount " + line)
	}
	for _, line := range mounts {
		out.WriteString("mount " + line + "\n")
	}
	return out.String()
}

const (
	privileged   = "000001ffffffffff"
	unprivileged = "00000000a80425fb" // containerd's default set
	onlyAdmin    = "0000000000200000"
	allButAdmin  = "000001ffffdfffff"
)

func TestReadProbe(t *testing.T) {
	const (
		noAdmin = "has no CAP_SYS_ADMIN (set securityContext.privileged: true, best on a sidecar that mounts the volume and sleeps)"
		noTool  = "has no fsfreeze in its PATH (util-linux or busybox)"
	)
	for name, test := range map[string]struct {
		output string
		unable string
	}{
		"privileged":            {answer(privileged, true), ""},
		"CAP_SYS_ADMIN alone":   {answer(onlyAdmin, true), ""},
		"unprivileged":          {answer(unprivileged, true), noAdmin},
		"all but CAP_SYS_ADMIN": {answer(allButAdmin, true), noAdmin},
		"no capability":         {answer("0000000000000000", true), noAdmin},
		"no fsfreeze":           {answer(privileged, false), noTool},
		"neither":               {answer(unprivileged, false), noAdmin},
		"no output":             {"", noAdmin},
		"a mount is no word":    {answer(privileged, false, "2120 2101 8:16 / /fsfreeze rw - ext4 /dev/sdb rw"), noTool},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := readProbe([]byte(test.output))
			require.NoError(t, err)
			assert.Equal(t, test.unable, p.unable(false))
		})
	}

	for name, test := range map[string]struct{ output, text string }{
		"capabilities": {"CapEff:\tnone\n", `read the capabilities "\tnone": expected integer`},
		"mounts":       {"mount 1 2 8:1 /\n", "read the mounts: parsing '1 2 8:1 /' failed: not enough fields (4)"},
	} {
		t.Run("not understood: "+name, func(t *testing.T) {
			_, err := readProbe([]byte(test.output))
			require.EqualError(t, err, test.text)
		})
	}
}

func TestFileSystemAt(t *testing.T) {
	const kinds = "; those that can: ext2, ext3, ext4, xfs, btrfs, f2fs, jfs, nilfs2, reiserfs"
	for name, test := range map[string]struct {
		mounts        []string
		path, subPath string
		device, text  string
	}{
		"ext4 volume": {
			mounts: []string{"2120 2101 8:16 / /data rw,relatime - ext4 /dev/sdb rw,stripe=16"},
			path:   "/data", device: "8:16",
		},
		"xfs volume on device mapper": {
			mounts: []string{"2120 2101 253:7 / /data rw,relatime - xfs /dev/mapper/vg-pvc rw,attr2,inode64"},
			path:   "/data", device: "253:7",
		},
		"a mount path with a slash at its end": {
			mounts: []string{"2120 2101 8:16 / /data rw,relatime - ext4 /dev/sdb rw"},
			path:   "/data/", device: "8:16",
		},
		"a mount path with a blank": {
			mounts: []string{`2120 2101 8:16 / /my\040data rw,relatime - ext4 /dev/sdb rw`},
			path:   "/my data", device: "8:16",
		},
		"subPath": {
			mounts: []string{"2120 2101 8:16 /pg/main /data rw,relatime - ext4 /dev/sdb rw"},
			path:   "/data", subPath: "pg/main", device: "8:16",
		},
		"subPath, not clean": {
			mounts: []string{"2120 2101 8:16 /pg/main /data rw,relatime - ext4 /dev/sdb rw"},
			path:   "/data", subPath: "./pg//main/", device: "8:16",
		},
		"a part of a volume, mounted without subPath": {
			mounts: []string{"2120 2101 8:16 /pg /data rw,relatime - ext4 /dev/sdb rw"},
			path:   "/data", text: "/data is the directory /pg of a larger file system (device 8:16): freezing it would freeze all of that",
		},
		"subPath of a directory-backed volume": {
			mounts: []string{"2120 2101 8:32 /volumes/pvc-1/pg /data rw,relatime - ext4 /dev/sdc rw"},
			path:   "/data", subPath: "pg", text: "/data is the directory /volumes/pvc-1/pg of a larger file system (device 8:32): freezing it would freeze all of that",
		},
		"hostPath of the node's root file system": {
			mounts: []string{"2120 2101 8:1 / /host rw,relatime - ext4 /dev/sda1 rw,discard"},
			path:   "/host", text: "/host is a directory of the node's own file system (device 8:1, ext4): freezing it would freeze the node",
		},
		"hostPath of a directory": {
			mounts: []string{"2120 2101 8:1 /srv/data /data rw,relatime - ext4 /dev/sda1 rw,discard"},
			path:   "/data", text: "/data is a directory of the node's own file system (device 8:1, ext4): freezing it would freeze the node",
		},
		"csi directory on the node's own file system": {
			mounts: []string{"2120 2101 8:1 /var/lib/csi-hostpath-data/5f1e /data rw,relatime - ext4 /dev/sda1 rw,discard"},
			path:   "/data", text: "/data is a directory of the node's own file system (device 8:1, ext4): freezing it would freeze the node",
		},
		"csi directory on another file system": {
			mounts: []string{"2120 2101 8:32 /csi-data/pvc-1 /data rw,relatime - xfs /dev/sdc rw"},
			path:   "/data", text: "/data is the directory /csi-data/pvc-1 of a larger file system (device 8:32): freezing it would freeze all of that",
		},
		"nfs": {
			mounts: []string{"2120 2101 0:71 / /data rw,relatime - nfs4 10.0.0.9:/export/pvc-1 rw,vers=4.2,hard,proto=tcp"},
			path:   "/data", text: "/data is a nfs4 file system, which cannot be frozen from one node" + kinds,
		},
		"cephfs": {
			mounts: []string{"2120 2101 0:72 /volumes/csi/pvc-1 /data rw,relatime - ceph 10.0.0.1:6789:/volumes/csi/pvc-1 rw"},
			path:   "/data", text: "/data is a ceph file system, which cannot be frozen from one node" + kinds,
		},
		"emptyDir in memory": {
			mounts: []string{"2120 2101 0:88 / /cache rw,relatime - tmpfs tmpfs rw,size=1024k"},
			path:   "/cache", text: "/cache is a tmpfs file system, which cannot be frozen from one node" + kinds,
		},
		"the container's own root": {
			path: "/", text: "/ is a overlay file system, which cannot be frozen from one node" + kinds,
		},
		"btrfs, the whole of it": {
			mounts: []string{"2120 2101 0:45 / /data rw,relatime - btrfs /dev/sdb rw,subvolid=5,subvol=/"},
			path:   "/data", device: "0:45",
		},
		"btrfs subvolume": {
			mounts: []string{"2120 2101 0:45 /@pvc-1 /data rw,relatime - btrfs /dev/sdb rw,subvolid=257,subvol=/@pvc-1"},
			path:   "/data", text: "/data is the directory /@pvc-1 of a larger file system (device 0:45): freezing it would freeze all of that",
		},
		"over-mounted by another volume": {
			mounts: []string{
				"2120 2101 8:16 / /data rw,relatime - ext4 /dev/sdb rw",
				"2121 2120 8:48 / /data rw,relatime - ext4 /dev/sdd rw",
			},
			path: "/data", device: "8:48",
		},
		"over-mounted by the node's": {
			mounts: []string{
				"2120 2101 8:16 / /data rw,relatime - ext4 /dev/sdb rw",
				"2121 2120 8:1 /srv /data rw,relatime - ext4 /dev/sda1 rw",
			},
			path: "/data", text: "/data is a directory of the node's own file system (device 8:1, ext4): freezing it would freeze the node",
		},
		"nothing mounted": {
			mounts: []string{"2120 2101 8:16 / /data/main rw,relatime - ext4 /dev/sdb rw", "2121 2101 8:16 / /database rw,relatime - ext4 /dev/sdb rw"},
			path:   "/data", text: "no volume is mounted at /data",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := readProbe([]byte(answer(privileged, true, test.mounts...)))
			require.NoError(t, err)
			device, err := p.fileSystemAt(test.path, test.subPath)
			assert.Equal(t, test.device, device)
			if test.text == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.text)
			}
		})
	}
}

// The node's files may be on several of its file systems.
func TestEachFileOfTheNodeCounts(t *testing.T) {
	for i, file := range nodeFiles {
		t.Run(file, func(t *testing.T) {
			p, err := readProbe([]byte("mount 1 0 8:5 /x " + file + " rw - ext4 /dev/sda5 rw\nmount 2 0 8:5 / /data rw - ext4 /dev/sda5 rw\n"))
			require.NoError(t, err, i)
			_, err = p.fileSystemAt("/data", "")
			require.EqualError(t, err, "/data is a directory of the node's own file system (device 8:5, ext4): freezing it would freeze the node")
		})
	}
}
