package quiesce

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// probeScript tells what of a container matters to a freeze: its capabilities,
// whether it has fsfreeze, and what is mounted where.
const probeScript = `while IFS= read -r line; do case $line in CapEff:*) echo "$line";; esac; done </proc/self/status
command -v fsfreeze >/dev/null 2>&1 && echo fsfreeze
while IFS= read -r line; do printf 'mount %s\n' "$line"; done </proc/self/mountinfo`

// capSysAdmin is the bit of CAP_SYS_ADMIN, which ioctl(FIFREEZE) asks for
// (capabilities(7)).
const capSysAdmin = 1 << 21

// probe is what a container said of itself.
type probe struct {
	admin    bool
	fsfreeze bool
	mounts   []*mountinfo.Info
}

func readProbe(output []byte) (probe, error) {
	var p probe
	var mounts bytes.Buffer
	for line := range strings.Lines(string(output)) {
		line = strings.TrimRight(line, "\n")
		if mount, ok := strings.CutPrefix(line, "mount "); ok {
			mounts.WriteString(mount + "\n")
			continue
		}
		if caps, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var mask uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(caps), "%x", &mask); err != nil {
				return p, fmt.Errorf("read the capabilities %q: %w", caps, err)
			}
			p.admin = mask&capSysAdmin != 0
		}
		if line == "fsfreeze" {
			p.fsfreeze = true
		}
	}
	var err error
	if p.mounts, err = mountinfo.GetMountsFromReader(&mounts, nil); err != nil {
		return p, fmt.Errorf("read the mounts: %w", err)
	}
	return p, nil
}

// freezable are the file systems whose driver implements a freeze (it sets
// freeze_fs or is a journal of its own on one block device). What is shared
// over a network or lives in memory is not among them.
var freezable = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "reiserfs"}

// nodeFiles are mounted by the kubelet and the container runtime into every
// container, from the node's own file systems.
var nodeFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}

// fileSystemAt returns the device ("major:minor") of the file system that is
// mounted at mountPath, and an error with the reason where it must not be
// frozen: ioctl(FIFREEZE) always takes the whole file system, so a directory
// that a volume only borrows from the node would take the node along.
func (p probe) fileSystemAt(mountPath, subPath string) (device string, err error) {
	mount := p.mountAt(mountPath)
	if mount == nil {
		return "", fmt.Errorf("nothing is mounted at %s", mountPath)
	}
	device = fmt.Sprintf("%d:%d", mount.Major, mount.Minor)
	for _, file := range nodeFiles {
		if own := p.mountAt(file); own != nil && own.Major == mount.Major && own.Minor == mount.Minor {
			return "", fmt.Errorf("%s is a directory of the node's own file system (device %s, %s): freezing it would freeze the node", mountPath, device, mount.FSType)
		}
	}
	if !slices.Contains(freezable, mount.FSType) {
		return "", fmt.Errorf("%s is a %s file system, which cannot be frozen from one node; those that can: %s", mountPath, mount.FSType, strings.Join(freezable, ", "))
	}
	if root := path.Join("/", subPath); mount.Root != root {
		return "", fmt.Errorf("%s is the directory %s of a larger file system (device %s): freezing it would freeze all of that", mountPath, mount.Root, device)
	}
	return device, nil
}

// mountAt returns the topmost mount at a path.
func (p probe) mountAt(mountPath string) *mountinfo.Info {
	mountPath = path.Clean(mountPath)
	for _, mount := range slices.Backward(p.mounts) {
		if mount.Mountpoint == mountPath {
			return mount
		}
	}
	return nil
}

// unable says why a container cannot freeze, "" when it can.
func (p probe) unable() string {
	switch {
	case !p.admin:
		return "has no CAP_SYS_ADMIN (set securityContext.privileged: true, best on a sidecar that mounts the volume and sleeps)"
	case !p.fsfreeze:
		return "has no fsfreeze in its PATH (util-linux or busybox)"
	}
	return ""
}
