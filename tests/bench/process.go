package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
)

const (
	starts     = 10
	startLimit = 10 * time.Second
	// memoryInterval lies between two looks at the plugin's memory, whose peak
	// the kernel keeps.
	memoryInterval = 100 * time.Millisecond
)

// process is what the plugin itself needs.
type process struct {
	starts []time.Duration
	rss    []float64 // MiB, one for each backup of all claims with the volume policy
	binary float64   // MiB
}

// measureProcess starts the plugin some times, and looks how large it is.
func (b *bench) measureProcess(ctx context.Context, found *results) error {
	info, err := os.Stat(b.plugin)
	if err != nil {
		return fmt.Errorf("find the plugin (build it, or say --plugin): %w", err)
	}
	found.process.binary = float64(info.Size()) / (1 << 20)
	for range starts {
		took, err := startPlugin(ctx, b.plugin)
		if err != nil {
			return fmt.Errorf("start %s as Velero does: %w", b.plugin, err)
		}
		found.process.starts = append(found.process.starts, took)
	}
	b.Say("the plugin starts in %s ms", spread(found.process.starts))
	return nil
}

// handshake is the line by which a plugin tells where it serves.
var handshake = regexp.MustCompile(`^\d+\|\d+\|(unix|tcp)\|[^|]+\|grpc(\||$)`)

// startPlugin starts the plugin as Velero does, and returns the time until it
// says that it serves.
func startPlugin(ctx context.Context, binary string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	hello := framework.Handshake()
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = append(os.Environ(), hello.MagicCookieKey+"="+hello.MagicCookieValue,
		fmt.Sprintf("PLUGIN_PROTOCOL_VERSIONS=%d", hello.ProtocolVersion), "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill() // as Velero does in the end
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	took = time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("read its handshake: %w", err)
	}
	if !handshake.MatchString(line) {
		return 0, fmt.Errorf("its handshake is %q", line)
	}
	return took, nil
}

// watchMemory watches the plugin's processes in Velero until peak is called,
// which returns the most that one of them had resident, MiB.
func (b *bench) watchMemory(ctx context.Context) (peak func() (float64, error)) {
	ctx, stop := context.WithCancel(ctx)
	most := make(chan float64)
	go func() {
		highest := 0.0
		ticks := time.NewTicker(memoryInterval)
		defer ticks.Stop()
		for {
			for _, pid := range b.PluginPIDs() {
				highest = max(highest, peakMemory(pid))
			}
			select {
			case <-ctx.Done():
				most <- highest
				return
			case <-ticks.C:
			}
		}
	}()
	return func() (float64, error) {
		stop()
		highest := <-most
		if highest == 0 {
			return 0, errors.New("no process of the plugin was seen in Velero while the backup ran")
		}
		return highest, nil
	}
}

var highWaterMark = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// peakMemory is the most that a process has had resident, MiB; 0 when it has
// ended.
func peakMemory(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	field := highWaterMark.FindSubmatch(status)
	if field == nil {
		return 0
	}
	kib, _ := strconv.Atoi(string(field[1])) // digits
	return float64(kib) / 1024
}
