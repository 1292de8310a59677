package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// neededProgram is a program of the machine and the Debian package it is in.
type neededProgram struct{ program, pkg string }

var neededPrograms = []neededProgram{
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"busybox", "busybox-static"},
	{"mkfs.xfs", "xfsprogs"},
	{"mkfs.ext4", "e2fsprogs"},
	{"resize2fs", "e2fsprogs"},
	{"iptables", "iptables"},
	{"conntrack", "conntrack"},
	{"ip", "iproute2"},
	{"fsfreeze", "util-linux"},
	{"losetup", "mount"},
	{"mount", "mount"},
	{"dash", "dash"},
	{"bash", "bash"},
}

// cniDirs are where distributions put the CNI plugins.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin"}

const cniPackage = "containernetworking-plugins"

// systemDirs are searched besides PATH, which for a user often lacks them.
var systemDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"}

// CheckMachine says why a bed cannot be on this machine or for this user.
func CheckMachine() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the test bed needs Linux, this is %s", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return errors.New("the test bed needs root: it makes a network namespace, mounts and containers")
	}
	return nil
}

// installPackages installs what is missing of the Debian packages.
func (b *Bed) installPackages(ctx context.Context) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("these Debian packages are missing, and there is no apt-get to install them: %s", strings.Join(missing, " "))
	}
	b.Say("installing %s", strings.Join(missing, " "))
	install := append([]string{"install", "--quiet", "--yes", "--no-install-recommends"}, missing...)
	for _, args := range [][]string{{"update", "--quiet"}, install} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	if missing := missingPackages(); len(missing) > 0 {
		return fmt.Errorf("programs of these packages are still missing after their installation: %s", strings.Join(missing, " "))
	}
	return nil
}

func missingPackages() []string {
	var missing []string
	for _, n := range neededPrograms {
		if findProgram(n.program) == "" && !slices.Contains(missing, n.pkg) {
			missing = append(missing, n.pkg)
		}
	}
	if cniDir() == "" {
		missing = append(missing, cniPackage)
	}
	return missing
}

// findProgram is the path of a program of the machine, "" when there is none.
func findProgram(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range systemDirs {
		if p := filepath.Join(dir, name); isFile(p) {
			return p
		}
	}
	return ""
}

func cniDir() string {
	for _, dir := range cniDirs {
		if isFile(filepath.Join(dir, "bridge")) && isFile(filepath.Join(dir, "host-local")) {
			return dir
		}
	}
	return ""
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// command runs a program of the machine and returns what it prints.
func command(ctx context.Context, name string, args ...string) (string, error) {
	path := findProgram(name)
	if path == "" {
		return "", fmt.Errorf("%s %s: there is no program %s", name, strings.Join(args, " "), name)
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
