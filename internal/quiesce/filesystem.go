package quiesce

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"stillpoint.io/stillpoint/internal/workload"
)

// probeScript prints the properties of a container that a freeze depends on: its user,
// its capabilities, the freeze programs in its PATH, the variables named by the script's
// arguments, its mounts, and the block devices below them (number and, for device
// mapper, UUID). For btrfs, mountinfo has only the name of one device and no number.
const probeScript = `for stillpoint do eval "printf 'env %s=%s\n' \"\$stillpoint\" \"\${$stillpoint-}\""; done
while IFS= read -r line; do case $line in CapEff:*|CapBnd:*|Uid:*) echo "$line";; esac; done </proc/self/status
[ ! -r /proc/self/uid_map ] || { read -r line; echo "uid_map $line"; } </proc/self/uid_map
for name in fsfreeze sync; do command -v "$name" >/dev/null 2>&1 && echo "$name"; done
device() {
	[ -r "$2/dev" ] || return 0
	IFS= read -r number <"$2/dev"
	uuid=; [ ! -r "$2/dm/uuid" ] || IFS= read -r uuid <"$2/dm/uuid"
	echo "device $1 $number $uuid"
}
while IFS= read -r line; do
	printf 'mount %s\n' "$line"
	set -f; set -- $line; set +f
	case $line in
	*' - btrfs '*)
		source=${line##*' - btrfs '}; source=${source%% *}
		for member in /sys/fs/btrfs/*/devices/*; do
			name=; [ ! -r "$member/dm/name" ] || IFS= read -r name <"$member/dm/name"
			case ${source##*/} in "${member##*/}"|"$name") for member in "${member%/*}"/*; do device "$3" "$member"; done;; esac
		done;;
	*) device "$3" "/sys/dev/block/$3";;
	esac
done </proc/self/mountinfo`

// capSysAdmin is the bit of CAP_SYS_ADMIN, which ioctl(FIFREEZE) requires.
const capSysAdmin = 1 << 21

// probe is the parsed output of probeScript.
type probe struct {
	// admin reports whether commands in the container have CAP_SYS_ADMIN, bounded
	// whether root would have it, and nested whether it is limited to a user namespace.
	admin, bounded, nested bool
	user                   string
	fsfreeze, sync         bool
	// env has the requested variables.
	env    map[string]string
	mounts []*mountinfo.Info
	// devices are the block devices below each mount, by the device of the mount.
	devices map[string][]device
}

type device struct{ number, uuid string }

func readProbe(output []byte) (probe, error) {
	p := probe{env: map[string]string{}, devices: map[string][]device{}}
	var mounts bytes.Buffer
	var err error
	for line := range strings.Lines(string(output)) {
		line = strings.TrimRight(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		fields := strings.Fields(line)
		switch {
		case word == "mount":
			mounts.WriteString(rest + "\n")
		case word == "env":
			name, value, _ := strings.Cut(rest, "=")
			p.env[name] = value
		case word == "device" && len(fields) > 2:
			p.devices[fields[1]] = append(p.devices[fields[1]], device{fields[2], strings.Join(fields[3:], " ")})
		case word == "uid_map":
			p.nested = !slices.Equal(fields[1:], []string{"0", "0", "4294967295"})
		case strings.HasPrefix(line, "CapEff:"):
			p.admin, err = hasAdmin(line[len("CapEff:"):])
		case strings.HasPrefix(line, "CapBnd:"):
			p.bounded, err = hasAdmin(line[len("CapBnd:"):])
		case strings.HasPrefix(line, "Uid:") && len(fields) > 2:
			p.user = fields[2] // the effective user
		case line == "fsfreeze":
			p.fsfreeze = true
		case line == "sync":
			p.sync = true
		}
		if err != nil {
			return p, err
		}
	}
	if p.mounts, err = mountinfo.GetMountsFromReader(&mounts, nil); err != nil {
		return p, fmt.Errorf("read the mounts: %w", err)
	}
	return p, nil
}

func hasAdmin(caps string) (bool, error) {
	var mask uint64
	if _, err := fmt.Sscanf(strings.TrimSpace(caps), "%x", &mask); err != nil {
		return false, fmt.Errorf("read the capabilities %q: %w", caps, err)
	}
	return mask&capSysAdmin != 0, nil
}

// freezable lists the file systems that the kernel can freeze. Network and in-memory
// file systems are not among them.
var freezable = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "reiserfs"}

// nodeFiles are the files that the kubelet and the container runtime mount into every
// container from the node's own file systems.
var nodeFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"}

// fileSystemAt returns the device ("major:minor") of the file system mounted at
// mountPath. It returns an error if that file system must not be frozen. FIFREEZE
// freezes the whole file system, so freezing a directory of the node freezes the node.
func (p probe) fileSystemAt(mountPath, subPath string) (device string, err error) {
	mount := p.mountAt(mountPath)
	if mount == nil {
		return "", fmt.Errorf("no volume is mounted at %s", mountPath)
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

// mountAt returns the topmost mount at a path, or nil.
func (p probe) mountAt(mountPath string) *mountinfo.Info {
	mountPath = path.Clean(mountPath)
	for _, mount := range slices.Backward(p.mounts) {
		if mount.Mountpoint == mountPath {
			return mount
		}
	}
	return nil
}

// drbdMajor is the major number of DRBD's devices.
const drbdMajor = "147"

// suspendedBy returns the storage that suspends the device of a mount for each snapshot,
// such as "LVM (device 253:3)", or "". Suspending a device freezes the file system
// directly on it. If FIFREEZE freezes that file system as well, it cannot be mounted
// again on Linux 6.8 and later; on earlier kernels the snapshot fails.
func (p probe) suspendedBy(mountPath string) (string, error) {
	mount := p.mountAt(mountPath)
	if mount == nil {
		return "", nil
	}
	number := fmt.Sprintf("%d:%d", mount.Major, mount.Minor)
	below := p.devices[number]
	if len(below) == 0 {
		if mount.FSType == "btrfs" || strings.HasPrefix(mount.Source, "/dev/mapper/") || strings.HasPrefix(mount.Source, "/dev/dm-") {
			return "", fmt.Errorf("it cannot be determined from /sys whether %s (%s) lies on LVM or DRBD, whose file systems must not be frozen; the key freeze in the profile of its driver (always or flush) decides", mountPath, mount.Source)
		}
		below = []device{{number: number}}
	}
	for _, d := range below {
		if major, _, _ := strings.Cut(d.number, ":"); major == drbdMajor {
			return fmt.Sprintf("DRBD (device %s)", d.number), nil
		}
		if strings.HasPrefix(d.uuid, "LVM-") {
			return fmt.Sprintf("LVM (device %s)", d.number), nil
		}
	}
	return "", nil
}

// variable matches a reference to a variable in a subPathExpr, or an escaped dollar sign.
// Its group is the variable's name if a shell can look it up.
var variable = regexp.MustCompile(`\$\$|\$\(([A-Za-z_]\w*)\)|\$\([^()]*\)`)

// subPath returns the subPath of a mount, with variables expanded as the kubelet does.
func (p probe) subPath(mount workload.Mount) (string, error) {
	if mount.SubPathExpr == "" {
		return mount.SubPath, nil
	}
	var err error
	return variable.ReplaceAllStringFunc(mount.SubPathExpr, func(reference string) string {
		if reference == "$$" {
			return "$"
		}
		value, known := p.env[strings.Trim(reference, "$()")]
		if !known {
			err = fmt.Errorf("the value of %s in subPathExpr %q of %s is not known", reference, mount.SubPathExpr, mount.Path)
		}
		return value
	}), err
}

// unable returns why a container cannot freeze (or, with flush, cannot write out) a file
// system, or "" if it can.
func (p probe) unable(flush bool) string {
	switch {
	case flush && p.sync:
		return ""
	case flush:
		return "has no sync in its PATH (coreutils or busybox)"
	case p.admin && p.nested:
		return "runs in a user namespace, whose CAP_SYS_ADMIN does not count for the node's file systems (remove hostUsers: false from the pod)"
	case !p.admin && p.bounded && p.user != "" && p.user != "0":
		return fmt.Sprintf("runs as user %s, and only root gets the container's CAP_SYS_ADMIN (set securityContext.runAsUser: 0 and runAsNonRoot: false on the container)", p.user)
	case !p.admin && p.user != "" && p.user != "0":
		return fmt.Sprintf("has no CAP_SYS_ADMIN and runs as user %s (set securityContext.privileged: true, runAsUser: 0 and runAsNonRoot: false, best on a sidecar that mounts the volume and sleeps)", p.user)
	case !p.admin:
		return "has no CAP_SYS_ADMIN (set securityContext.privileged: true, best on a sidecar that mounts the volume and sleeps)"
	case !p.fsfreeze:
		return "has no fsfreeze in its PATH (util-linux or busybox)"
	}
	return ""
}
