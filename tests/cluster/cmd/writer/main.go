// Command writer is the application whose stalls are measured: it writes one
// line to each of its directories at every tick, and reports how many it wrote
// and how long the slowest of them took.
//
//	writer --interval 5ms --report /run/report.json DIR...
//
// DIR/log takes the lines, "NUMBER TIME", the time in UTC with nanoseconds.
// The report is a list with one {"dir","lines","longestStallMillis"} for each
// directory and belongs on another file system than the measured ones: on a
// frozen one it could not be written. SIGUSR1 forgets the slowest write so far.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// reportInterval is how often the report is rewritten.
const reportInterval = 200 * time.Millisecond

func main() {
	interval := flag.Duration("interval", 5*time.Millisecond, "time between two lines in a directory")
	report := flag.String("report", "/run/report.json", "file for the report")
	flag.Parse()
	if err := run(*interval, *report, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func run(interval time.Duration, report string, dirs []string) error {
	if len(dirs) == 0 || interval <= 0 {
		return fmt.Errorf("nothing to do: it needs directories and an interval, not %s", interval)
	}
	failed := make(chan error, len(dirs))
	var writers []*writer
	for _, dir := range dirs {
		w := &writer{dir: dir}
		writers = append(writers, w)
		go func() { failed <- w.write(interval) }()
	}
	reset := make(chan os.Signal, 1)
	signal.Notify(reset, syscall.SIGUSR1)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	ticks := time.Tick(reportInterval)
	for {
		select {
		case <-stop:
			return writeReport(report, writers)
		case err := <-failed:
			return err
		case <-reset:
			for _, w := range writers {
				w.forget()
			}
		case <-ticks:
		}
		if err := writeReport(report, writers); err != nil {
			return err
		}
	}
}

// writer writes to one directory.
type writer struct {
	dir string

	mu      sync.Mutex
	lines   int
	longest time.Duration
	// began is when the write under way began; zero between two writes. A write
	// that hangs counts before it ends.
	began time.Time
}

func (w *writer) write(interval time.Duration) error {
	f, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for range time.Tick(interval) {
		began := time.Now()
		w.mu.Lock()
		w.began = began
		line := fmt.Sprintf("%d %s\n", w.lines+1, began.UTC().Format("2006-01-02T15:04:05.000000000Z"))
		w.mu.Unlock()
		_, err := f.WriteString(line)
		w.mu.Lock()
		w.longest = max(w.longest, time.Since(w.began))
		w.began = time.Time{}
		w.lines++
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = 0
	if !w.began.IsZero() {
		w.began = time.Now()
	}
}

// measurement is one directory in the report.
type measurement struct {
	Dir                string  `json:"dir"`
	Lines              int     `json:"lines"`
	LongestStallMillis float64 `json:"longestStallMillis"`
}

func (w *writer) measure() measurement {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := w.longest
	if !w.began.IsZero() {
		longest = max(longest, time.Since(w.began))
	}
	return measurement{Dir: w.dir, Lines: w.lines, LongestStallMillis: float64(longest.Microseconds()) / 1000}
}

// writeReport replaces the file as a whole: a reader never sees half of it.
func writeReport(file string, writers []*writer) error {
	var report []measurement
	for _, w := range writers {
		report = append(report, w.measure())
	}
	b, err := json.Marshal(report)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
