package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// WriterReport is where a writer puts its report: not on a volume, where it
// could not be written while that is frozen.
const WriterReport = "/run/report.json"

// WriterCommand is the command line of a writer to directories: a line to each
// every 5 ms. See cmd/writer of the test bed.
func WriterCommand(dirs ...string) []string {
	return append([]string{"writer", "--interval", "5ms", "--report", WriterReport}, dirs...)
}

// ForgetStalls has the writer in a container begin to measure anew.
func (s *Stage) ForgetStalls(ctx context.Context, c Container) error {
	_, err := s.Exec(ctx, c, "sh", "-c", "kill -USR1 $(pidof writer)")
	return err
}

// LongestStall is for how long the writer in a container was kept from writing
// to one of its directories, at the worst.
func (s *Stage) LongestStall(ctx context.Context, c Container) (time.Duration, error) {
	out, err := s.Exec(ctx, c, "cat", WriterReport)
	if err != nil {
		return 0, err
	}
	var report []struct {
		LongestStallMillis float64 `json:"longestStallMillis"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report) == 0 {
		return 0, fmt.Errorf("read the report of the writer in %s/%s: %q: %w", c.Namespace, c.Deployment, out, err)
	}
	longest := 0.0
	for _, dir := range report {
		longest = max(longest, dir.LongestStallMillis)
	}
	return time.Duration(longest * float64(time.Millisecond)), nil
}
