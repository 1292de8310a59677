package bed

import (
	"context"
	"fmt"
	"os"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/process"
)

// Running names the components that run and those that do not.
func (b *Bed) Running() (running, missing []string) {
	for _, name := range startOrder {
		if b.Processes.PID(name) != 0 {
			running = append(running, name)
		} else {
			missing = append(missing, name)
		}
	}
	return running, missing
}

// Status describes the bed for a person. It must be called inside the
// cluster's network, if there is one.
func (b *Bed) Status(ctx context.Context) string {
	var s strings.Builder
	running, missing := b.Running()
	fmt.Fprintf(&s, "directory  %s\n", b.Dir)
	if len(running) == 0 {
		return s.String() + "state      down\n"
	}
	for _, name := range running {
		fmt.Fprintf(&s, "running    %-24s pid %d\n", name, b.Processes.PID(name))
	}
	for _, name := range missing {
		fmt.Fprintf(&s, "missing    %s\n", name)
	}
	if err := b.nodeReady(ctx, b.Processes.Started(Kubelet)); err != nil {
		fmt.Fprintf(&s, "node       %v\n", err)
		return s.String()
	}
	fmt.Fprintf(&s, "node       %s is ready\n", nodeName)
	if err := b.veleroReady(ctx); err != nil {
		fmt.Fprintf(&s, "Velero     %v\n", err)
		return s.String()
	}
	plugins, err := b.InstalledPlugins(ctx)
	if err != nil {
		fmt.Fprintf(&s, "Velero     %v\n", err)
		return s.String()
	}
	fmt.Fprintf(&s, "Velero     ready, with our plugin %v\n", plugins)
	return s.String()
}

// ContainerProcesses are the host's ids of the processes in the cluster's
// containers whose command line matches.
func (b *Bed) ContainerProcesses(match func(args []string) bool) []int {
	var found []int
	for _, pid := range process.All() {
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(groups), "/"+b.id()+"/") {
			continue
		}
		if args := process.Args(pid); len(args) > 0 && match(args) {
			found = append(found, pid)
		}
	}
	return found
}
