package stage

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Log is a backup's log, as Velero keeps it.
type Log string

// BackupLog fetches the log of a backup that has ended.
func (s *Stage) BackupLog(ctx context.Context, name string) (Log, error) {
	out, err := s.Velero(ctx, "backup", "logs", name)
	return Log(out), err
}

var (
	thawedLine = regexp.MustCompile(`(?m)^.* msg="(Thawed [^"]*)".*$`)
	frozenFor  = regexp.MustCompile(` frozenMillis=(\d+)`)
)

// Frozen is for how long Stillpoint says that it has kept the one workload of
// the backup frozen. That it did not, or had to thaw early, is an error.
func (l Log) Frozen() (time.Duration, error) {
	lines := thawedLine.FindAllStringSubmatch(string(l), -1)
	if len(lines) != 1 {
		return 0, fmt.Errorf("the backup's log tells of %d thawed workloads, not of one: was the plugin installed? %s", len(lines), l.Complaints())
	}
	if strings.Contains(lines[0][1], " early: ") {
		return 0, errors.New(lines[0][1])
	}
	field := frozenFor.FindStringSubmatch(lines[0][0])
	if field == nil {
		return 0, fmt.Errorf("no field frozenMillis in %q", lines[0][0])
	}
	millis, err := strconv.Atoi(field[1])
	return time.Duration(millis) * time.Millisecond, err
}

// Complaints are the lines of errors and warnings.
func (l Log) Complaints() string {
	var found []string
	for line := range strings.Lines(string(l)) {
		if strings.Contains(line, " level=error ") || strings.Contains(line, " level=warning ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if len(found) == 0 {
		return "its log has neither errors nor warnings"
	}
	return strings.Join(found, "\n")
}
