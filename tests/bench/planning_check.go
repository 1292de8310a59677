package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/utils/clock"

	"stillpoint.io/stillpoint/internal/check"
	"stillpoint.io/stillpoint/internal/cluster"
	"stillpoint.io/stillpoint/internal/podexec"
)

// counter counts the requests that get as far as the API server.
type counter struct {
	http.RoundTripper
	sent *atomic.Int64
}

// RoundTrip counts one.
func (c counter) RoundTrip(request *http.Request) (*http.Response, error) {
	c.sent.Add(1)
	return c.RoundTripper.RoundTrip(request)
}

// countPlanning plans a backup of namespaces and returns how many requests that
// takes. Another number of workloads or claims than these is an error.
func countPlanning(ctx context.Context, workloads, claims int, namespaces ...string) (int, error) {
	var sent atomic.Int64
	glance := cluster.NewGlance()
	clients, err := cluster.Connection{Wrap: func(next http.RoundTripper) http.RoundTripper {
		return glance.Wrap(counter{next, &sent})
	}}.Open()
	if err != nil {
		return 0, err
	}
	checker := check.New(clients, podexec.New(clients), clock.RealClock{}, glance.Forget)
	report, err := checker.Check(ctx, check.Options{Namespaces: namespaces, VolumePolicies: planPolicies, Deployment: "velero"})
	if err != nil {
		return 0, err
	}
	return int(sent.Load()), complete(report, workloads, claims)
}

// complete makes sure that everything was planned.
func complete(report *check.Report, workloads, claims int) error {
	found, quiesced := 0, 0
	for _, unit := range report.Units {
		found += len(unit.Volumes)
		for _, volume := range unit.Volumes {
			if volume.SnapshotClass != planClass {
				return fmt.Errorf("claim %s/%s has path %s and VolumeSnapshotClass %q: %s", unit.Namespace, volume.Claim, volume.Path, volume.SnapshotClass, volume.Reason)
			}
		}
		if unit.Quiesce == nil {
			continue
		}
		quiesced++
		if b := unit.Quiesce.Blueprints; len(b) != 1 || len(b[0].Pre) != 1 || len(b[0].Post) != 1 {
			return fmt.Errorf("%s has no commands: %s", unit.Name, strings.Join(unit.Failures, "; "))
		}
	}
	if report.Fails || len(report.Units) != workloads || found != claims || quiesced != workloads/quiescedEach {
		var failures []string
		for _, unit := range report.Units {
			failures = append(failures, unit.Failures...)
		}
		return fmt.Errorf("of %d workloads with %d claims %d with %d were planned, %d of them quiesced; failures: %s",
			workloads, claims, len(report.Units), found, quiesced, strings.Join(slices.Concat(report.Failures, failures), "; "))
	}
	return nil
}

// runPlanning runs `stillpoint check` on namespaces and returns how long it
// takes, and the most that it has had resident, MiB.
func runPlanning(ctx context.Context, plugin string, namespaces []string) (took time.Duration, memory float64, err error) {
	args := []string{"check", "--output", "json", "--policy", planPolicies, "--namespace", strings.Join(namespaces, ",")}
	cmd := exec.CommandContext(ctx, plugin, args...)
	began := time.Now()
	output, err := cmd.Output()
	took = time.Since(began)
	if err != nil {
		return 0, 0, fmt.Errorf("%s check: %w", plugin, err)
	}
	var report check.Report
	if err := json.Unmarshal(output, &report); err != nil {
		return 0, 0, fmt.Errorf("read what %s check has printed: %w", plugin, err)
	}
	if err := complete(&report, planWorkloads, planClaims); err != nil {
		return 0, 0, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, 0, fmt.Errorf("%T is not the usage of a process", cmd.ProcessState.SysUsage())
	}
	return took, float64(usage.Maxrss) / 1024, nil
}
